"""Records trials: pointers of a starting policy, answered by the VLM and scored, as RL data."""

from lever_mlflow.cli.commands import rollout as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
