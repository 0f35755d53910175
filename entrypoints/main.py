"""Runs the whole experiment: rollout, validation, RCE, GRPO and evaluation of each beta, comparison."""

from lever_mlflow.cli.commands import main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
