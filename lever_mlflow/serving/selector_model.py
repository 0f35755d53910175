"""Defines the MLflow model of a checkpoint: precomputed features go in, pointers come out.

The model is logged as code, so that nothing is pickled: MLflow runs this file when it loads the model. Input columns are
``query`` (list of D numbers, the fused feature of the query) and ``candidates`` (list of N such lists, the pool); the parameter
is ``shots``. Output columns are ``pointer`` (pool positions in prompt order) and ``logprob``.
"""

from __future__ import annotations

import math
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, ColSpec, DataType

from lever_mlflow.settings import ServingSettings

__all__ = ["CHECKPOINT_ARTIFACT", "SelectorModel", "model_signature"]

CHECKPOINT_ARTIFACT = "checkpoint"


def model_signature() -> ModelSignature:
    """Describes the columns and parameters of ``SelectorModel.predict``."""
    vector = Array(DataType.double)
    return ModelSignature(
        inputs=Schema([ColSpec(vector, "query"), ColSpec(Array(vector), "candidates")]),
        outputs=Schema([ColSpec(Array(DataType.long), "pointer"), ColSpec(DataType.double, "logprob")]),
        params=ParamSchema([ParamSpec("shots", DataType.long, ServingSettings.shots)]),
    )


class SelectorModel(PythonModel):
    """Serves the greedy picks of a pointer selector."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the checkpoint folder among the model's artifacts."""
        from lever_mlflow.selector.checkpoint import load_selector

        self.selector = load_selector(context.artifacts[CHECKPOINT_ARTIFACT])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Returns pointer and log-prob of each row.

        Raises:
            ParameterError: a row's features do not fit the selector or are not finite, or the pool is smaller than the shots.
        """
        import torch

        from lever_mlflow.exceptions import ParameterError

        shots = int((params or {}).get("shots", ServingSettings.shots))
        rows = []
        for number, (query, candidates) in enumerate(zip(model_input["query"], model_input["candidates"], strict=True)):
            query_BD = np.asarray(list(query), dtype=np.float32)[None]
            candidates_BND = np.asarray([list(candidate) for candidate in candidates], dtype=np.float32)[None]
            if not (math.isfinite(query_BD.sum()) and math.isfinite(candidates_BND.sum())):
                raise ParameterError(f"row {number}: features hold NaN or infinite values; send finite numbers")
            inputs = torch.from_numpy(query_BD), torch.from_numpy(candidates_BND)
            pointer_BK = self.selector.greedy(*inputs, shots)
            logprob = self.selector.logprobs(*inputs, pointer_BK[:, None]).item()
            rows.append({"pointer": pointer_BK[0].tolist(), "logprob": logprob})
        return pd.DataFrame(rows, columns=["pointer", "logprob"])


if __name__ != "lever_mlflow.serving.selector_model":  # MLflow runs the file under a name of its own
    mlflow.models.set_model(SelectorModel())
