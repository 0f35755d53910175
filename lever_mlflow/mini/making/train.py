"""Trains the embedded models: ``python -m lever_mlflow.mini.making.train``."""

from __future__ import annotations

import time
from pathlib import Path

import click

_DEFAULT_SEED = 7


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(__file__).parents[1],
    help="Folder into which vlm/ and clip/ are written.",
)
@click.option("--seed", type=int, default=_DEFAULT_SEED, show_default=True, help="Seed of all random draws.")
@click.option("--only", type=click.Choice(["vlm", "clip"]), default=None, help="Train only one of the two models.")
@click.option(
    "--threads",
    type=int,
    default=1,
    show_default=True,
    help="Number of CPU threads; the tensors are too small for more than one.",
)
@click.option(
    "--vision-steps", type=int, default=800, show_default=True, help="Training steps of the VLM's vision tower alone."
)
@click.option("--vlm-steps", type=int, default=3000, show_default=True, help="Training steps of the whole VLM.")
@click.option("--clip-steps", type=int, default=600, show_default=True, help="Training steps of CLIP.")
def main(out: Path, seed: int, only: str | None, threads: int, vision_steps: int, vlm_steps: int, clip_steps: int) -> None:
    """Train the tiny Qwen2.5-VL and the tiny CLIP from scratch on CPU."""
    import torch

    from lever_mlflow.mini.making.train_clip import train_clip
    from lever_mlflow.mini.making.train_vlm import train_vlm

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # black borders give denormal gradients, which make a step ten times slower
    started = time.monotonic()
    if only != "clip":
        train_vlm(out / "vlm", seed, vlm_steps, vision_steps)
    if only != "vlm":
        train_clip(out / "clip", seed, clip_steps)
    click.echo(f"trained in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
