"""Promotion of a beta's registered version."""

from __future__ import annotations

import logging

import mlflow

from lever_mlflow import registry
from lever_mlflow.steps.context import Context
from lever_mlflow.tracking import TAG

__all__ = ["promote_beta"]

log = logging.getLogger(__name__)


def promote_beta(context: Context, kl_beta: float) -> None:
    """Promotion of a beta's version to champion."""
    version, former = registry.promote(context.registered_name, kl_beta)
    log.info("%s: version %s (beta %g) is champion", context.registered_name, version, kl_beta)
    if former is not None:
        log.info("%s: version %s is previous-champion", context.registered_name, former)
    mlflow.set_tag(f"{TAG}champion", version)
