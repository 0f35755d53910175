"""Checks RL data with the Great Expectations suites; a failed critical expectation fails the run."""

from lever_mlflow.cli.commands import validate as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
