"""Trains a new selector on RL data by reward-weighted cross-entropy."""

from lever_mlflow.cli.commands import rce as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
