"""Lists the registered versions with their aliases, accuracies and data."""

from lever_mlflow.cli.commands import status as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
