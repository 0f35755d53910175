"""Converts RL data between JSON and Parquet.

python -m entrypoints.convert SOURCE TARGET
"""

from lever_mlflow.cli.commands import convert as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
