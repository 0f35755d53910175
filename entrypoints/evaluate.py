"""Evaluates every epoch of one beta's GRPO run beside the baselines and registers the best."""

from lever_mlflow.cli.commands import evaluate as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
