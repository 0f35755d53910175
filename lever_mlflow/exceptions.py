"""Defines the project's errors. A message names file, field, value and remedy; the command line prints it as one line."""

__all__ = [
    "CheckpointError",
    "DataError",
    "GateError",
    "LeverError",
    "MissingRunError",
    "ParameterError",
    "PromotionError",
    "ServerError",
    "StoreError",
    "first_line",
]


class LeverError(Exception):
    """Is the base of every error that a user can cause and mend."""


class DataError(LeverError):
    """Says that a data file, an image or an annotation is missing, damaged or inconsistent."""


class ParameterError(LeverError):
    """Says that a parameter has a value that cannot be used."""


class CheckpointError(LeverError):
    """Says that a checkpoint is missing, damaged or does not fit the selector."""


class GateError(LeverError):
    """Says that RL data failed a critical expectation of the data gate."""


class MissingRunError(LeverError):
    """Says that MLflow holds no run or model version of the requested kind."""


class PromotionError(LeverError):
    """Says that a version does not meet the conditions of a promotion, or that another change of champion came first."""


class ServerError(LeverError):
    """Says that the server of a VLM cannot be reached, refuses a request or does not speak the protocol."""


class StoreError(LeverError):
    """Says that MLflow refused something, or that its database, server or artifact store cannot be used."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, for another message that quotes it."""
    return str(error).strip().split("\n", 1)[0]
