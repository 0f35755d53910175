"""Adds VLM answers that other machines have stored to a cache file.

python -m entrypoints.merge_answers INTO FROM [FROM ...]
"""

from lever_mlflow.cli.commands import merge_answers as main
from lever_mlflow.cli.launching import launch

if __name__ == "__main__":
    launch(main)
