"""The project's errors. Each message names the file, the field, the value and the remedy; entry points print it as one line."""

__all__ = [
    "CheckpointError",
    "DataError",
    "GateError",
    "LeverError",
    "MissingRunError",
    "ParameterError",
    "PromotionError",
    "ServerError",
    "first_line",
]


class LeverError(Exception):
    """Base of every error that a user can cause and mend."""


class DataError(LeverError):
    """A data file, an image or an annotation is missing, damaged or inconsistent."""


class ParameterError(LeverError):
    """A parameter has a value that cannot be used."""


class CheckpointError(LeverError):
    """A checkpoint is missing, damaged or does not fit the selector."""


class GateError(LeverError):
    """RL data failed a critical expectation of the data gate."""


class MissingRunError(LeverError):
    """MLflow holds no run or model version of the kind asked for."""


class PromotionError(LeverError):
    """A version does not meet the conditions of a promotion, or another change of champion came first."""


class ServerError(LeverError):
    """The server of a VLM cannot be reached, refuses a request or does not speak the protocol."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of our own that quotes it."""
    return str(error).strip().split("\n", 1)[0]
