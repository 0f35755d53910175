"""Adds VLM answers that other machines have stored to a cache file; not an MLflow run, as nothing is computed.

python -m entrypoints.merge_answers INTO FROM [FROM ...]
"""

from pathlib import Path

import click

from entrypoints._cli import launch


@click.command()
@click.argument("into", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("sources", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1, required=True)
def main(into: Path, sources: tuple[Path, ...]) -> None:
    """Merge answer caches; answers that INTO has already stay."""
    from lever_mlflow.vlm.answer_cache import merge_answers

    click.echo(f"{into}: {merge_answers(sources, into)} answers added")


if __name__ == "__main__":
    launch(main)
