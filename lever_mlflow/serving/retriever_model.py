"""Defines the MLflow model of a retriever: questions about images go in, demonstrations come out.

The model is logged as code, so that nothing is pickled: MLflow runs this file when it loads the model. Request and response are
described in docs/serving.md.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image
from pydantic import BaseModel

from lever_mlflow.exceptions import LeverError, ParameterError
from lever_mlflow.serving.requests import Row, read_queries
from lever_mlflow.serving.retriever import CHECKPOINT, Retriever, load_retriever
from lever_mlflow.settings import ServingSettings

__all__ = ["Picks", "RequestError", "RetrieverModel", "input_example"]

log = logging.getLogger(__name__)


class Picks(BaseModel):
    """Describes a row of the response.

    Attributes:
        question_ids, questions, answers: the demonstrations in prompt order.
        logprob: log-prob of the whole pick.
        messages: the prompt as chat messages of OpenAI's interface, where the request asks for it.
    """

    question_ids: list[int]
    questions: list[str]
    answers: list[str]
    logprob: float
    messages: list[dict[str, Any]] | None = None


class RequestError(MlflowException):
    """Reports an error in one line. The message of an MlflowException would hold all data of the request too."""

    def __init__(self, line: str, error_code: int) -> None:
        super().__init__(line, error_code=error_code)
        self.line = line

    def serialize_as_json(self) -> str:
        """Returns the body of the server's response."""
        return json.dumps({"error_code": self.error_code, "message": self.line})


class RetrieverModel(PythonModel):
    """Serves a retriever in MLflow's server and in Python. ``predict`` checks a request and answers all its rows together."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the retriever and answers a request, so that the first one of a client is as quick as the others."""
        self.settings = ServingSettings()
        self.retriever: Retriever = load_retriever(Path(context.artifacts[CHECKPOINT]).parent)
        rows, params = input_example()
        self._answer([Row.model_validate(row) for row in rows], params)

    def predict(self, context: PythonModelContext, model_input: list[Row], params: dict[str, Any] | None = None) -> list[Picks]:
        """Returns the picks for each row, in order. Equal rows get equal picks, in any request.

        Raises:
            RequestError: the request cannot be used (status 400 on a server); or something else fails (status 500), which is
                logged and not shown to the client.
        """
        try:
            return self._answer(model_input, params or {})
        except LeverError as error:
            raise RequestError(" ".join(str(error).split()), INVALID_PARAMETER_VALUE) from None
        except Exception:
            log.exception("a request failed")
            raise RequestError("the request failed; the server's log tells why", INTERNAL_ERROR) from None

    def _answer(self, rows: list[Row], params: dict[str, Any]) -> list[Picks]:
        """Answers a request; errors are those of the retriever."""
        shots, as_messages = self._parameters(**params)
        queries = read_queries(rows, self.retriever.feature_dims, self.settings)
        answers = []
        for query, (demonstrations, logprob) in zip(queries, self.retriever.retrieve(queries, shots), strict=True):
            picks = Picks(
                question_ids=[sample.question_id for sample in demonstrations],
                questions=[sample.question for sample in demonstrations],
                answers=[sample.answer for sample in demonstrations],
                logprob=logprob,
                messages=self.retriever.messages(query, demonstrations) if as_messages else None,
            )
            answers.append(picks)
        return answers

    def _parameters(self, shots: Any = None, as_messages: Any = None, **unknown: Any) -> tuple[int, bool]:
        """Checks the parameters of a request and returns shots and as_messages.

        Unknown parameters are an error here; MLflow, when it checks a request first, drops them with a warning in its log.
        """
        if unknown:
            raise ParameterError(f"unknown parameter {', '.join(sorted(unknown))}; parameters are shots and as_messages")
        shots = self.settings.shots if shots is None else shots
        as_messages = self.settings.as_messages if as_messages is None else as_messages
        if isinstance(shots, bool) or not isinstance(shots, int):
            raise ParameterError(f"shots={shots!r}; give a whole number")
        if not isinstance(as_messages, bool):
            raise ParameterError(f"as_messages={as_messages!r}; give true or false")
        return shots, as_messages


def input_example() -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Returns the rows and the parameters of a small request."""
    content = io.BytesIO()
    Image.new("RGB", (56, 56), "grey").save(content, "PNG")
    row = {"question": "what is this?", "image": base64.b64encode(content.getvalue()).decode()}
    settings = ServingSettings()
    return [row], {"shots": settings.shots, "as_messages": settings.as_messages}


if __name__ != "lever_mlflow.serving.retriever_model":  # MLflow runs the file under a name of its own
    mlflow.models.set_model(RetrieverModel())
