"""Reads in the environment how a process was launched: alone, or as one of several that work on one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lever_mlflow.exceptions import ParameterError

__all__ = ["REMEDY", "Launch", "check_switches", "launch_of"]

REMEDY = (
    "unset what an earlier launch left (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and the variables of MPI), "
    "or start all processes by `accelerate launch`"
)
# What launchers set, and what those of MPI call it; accelerate reads the same (``get_cpu_distributed_information`` there).
_RANK, _SIZE, _LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
_VARIABLES = {
    _RANK: (_RANK, "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    _SIZE: (_SIZE, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    _LOCAL_RANK: (_LOCAL_RANK, "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    _ADDRESS: (_ADDRESS,),
    _PORT: (_PORT,),
}
_SWITCHES = {  # with which accelerate would train in another way, and the values with which it does not
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
    "ACCELERATE_USE_SAGEMAKER": "false",
}


class Launch(NamedTuple):
    """Describes the launch that a process is part of: its number, how many processes there are, and where they meet."""

    rank: int
    size: int
    place: str


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Returns the launch of several processes that the environment describes; None where it describes none.

    Raises:
        ParameterError: it describes one in part only, as variables of an earlier launch do, or with values that cannot be.
    """
    variables = {name: _first_variable(environment, names) for name, names in _VARIABLES.items()}
    size, local = variables[_SIZE], variables[_LOCAL_RANK]
    if local is None and (size is None or size[1].strip() in ("0", "1")):
        return None
    missing = [name for name, variable in variables.items() if variable is None]
    named = ", ".join(f"{variable[0]}={variable[1]}" for variable in variables.values() if variable)
    if missing:
        raise ParameterError(f"{named}, as in a launch of several processes, but without {', '.join(missing)}; {REMEDY}")
    numbers = {name: _number(*variable) for name, variable in variables.items() if variable and name != _ADDRESS}
    if not 0 <= numbers[_RANK] < numbers[_SIZE] or numbers[_LOCAL_RANK] >= numbers[_SIZE] or numbers[_PORT] > 65535:
        raise ParameterError(f"{named}: there is no such launch; {REMEDY}")
    address = variables[_ADDRESS]
    assert address is not None, "nothing is missing"
    return Launch(numbers[_RANK], numbers[_SIZE], f"{address[1]}:{numbers[_PORT]}")


def check_switches(environment: Mapping[str, str]) -> None:
    """Refuses variables with which accelerate would train in another way than a run says."""
    for name, usual in _SWITCHES.items():
        value = environment.get(name, "").strip().lower()
        if value not in ("", usual):
            raise ParameterError(f"{name}={value}: trainings here know no such thing; unset it, or set it to {usual}")


def _first_variable(environment: Mapping[str, str], names: Iterable[str]) -> tuple[str, str] | None:
    """Returns name and value of the first of these variables that is set."""
    return next(((name, environment[name]) for name in names if environment.get(name, "").strip()), None)


def _number(name: str, value: str) -> int:
    if not value.strip().isdecimal():
        raise ParameterError(f"{name}={value} is not a number; {REMEDY}")
    return int(value)
