"""Logs in MLflow across a tracking server that goes away in the middle of an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException
from requests.exceptions import ChunkedEncodingError

__all__ = ["persistently"]

T = TypeVar("T")

log = logging.getLogger(__name__)


def persistently(call: Callable[[], T]) -> T:
    """Returns what a call returns that logs in MLflow, and repeats the call once where the server's answer broke off.

    MLflow itself repeats a request that found no server, for some minutes, but not one whose answer had begun. The server may
    have carried out the first request, so the call must be one that may be carried out twice.

    Raises:
        MlflowException: the call failed in another way, or failed again.
    """
    try:
        return call()
    except MlflowException as error:
        if not isinstance(error.__context__, ChunkedEncodingError):
            raise
        log.warning("the tracking server broke off its answer (%s); asking it again", error.__context__)
    return call()
