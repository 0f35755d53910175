"""Makes the previous champion the champion again."""

from lever_mlflow.cli.commands import rollback as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
