"""Optimises a start checkpoint with GRPO under a KL penalty of weight beta."""

from lever_mlflow.cli.commands import grpo as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
