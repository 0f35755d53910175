import pytest

from lever_mlflow import mini
from lever_mlflow.exceptions import DataError
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.okvqa import load_split
from lever_mlflow.types import Prompt
from lever_mlflow.vlm import LocalVLM


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """64 prompts of 0 to 4 demonstrations."""
    root = ensure_dataset(tmp_path_factory.mktemp("cache"))
    train, val = load_split(root, "train"), load_split(root, "val")
    return [Prompt(tuple(train[7 * i + j] for j in range(i % 5)), val[i]) for i in range(64)]


def answers(prompts, batch_size):
    vlm = LocalVLM(mini.VLM_PATH, "digest", "mini", batch_size=batch_size)
    return [text for _, text in sorted(item for batch in vlm.generate(prompts) for item in batch)]


def test_answers_do_not_depend_on_batch_size_or_order(prompts):
    one = answers(prompts, 1)
    assert answers(prompts, 7) == one
    assert answers(prompts, 64) == one
    assert answers(prompts[::-1], 64) == one[::-1]


def test_a_demonstration_is_followed(prompts):
    query = next(p.query for p in prompts)
    copied = answers([Prompt((query,), query)], 1)[0]
    assert copied.strip() == query.answer


def test_a_folder_that_is_no_model(prompts, tmp_path):
    with pytest.raises(DataError, match="not a readable Qwen2_5_VLForConditionalGeneration folder"):
        list(LocalVLM(tmp_path, "digest", "mini").generate(prompts[:1]))
