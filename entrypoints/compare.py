"""Compares evaluated betas, or the runs in a results file, in a report."""

from lever_mlflow.cli.commands import compare as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
