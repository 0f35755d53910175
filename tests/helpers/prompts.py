"""Prompts of the embedded data set."""

from collections.abc import Sequence

from lever_mlflow.data.okvqa import load_split
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm.prompt import Prompt


def mini_prompts(cache_dir, shots_of: Sequence[int], *, each: int = 1) -> list[Prompt]:
    """Prompts of the first evaluation questions, each of which is asked ``each`` times in a row.

    ``shots_of[i]`` is the number of demonstrations of prompt i.
    """
    root = ensure_dataset(cache_dir)
    train, val = load_split(root, "train"), load_split(root, "val")
    questions = [i // each for i in range(len(shots_of))]
    return [Prompt(tuple(train[7 * i + j] for j in range(shots)), val[i]) for i, shots in zip(questions, shots_of, strict=True)]
