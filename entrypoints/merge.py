"""Merges RL data that were recorded in parts, and has the data gate judge the whole."""

from lever_mlflow.cli.commands import merge as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
