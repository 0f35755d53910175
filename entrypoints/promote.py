"""Makes the registered version of a beta the champion, if the evidence is for it."""

from lever_mlflow.cli.commands import promote as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
