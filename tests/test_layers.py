"""Imports point down only, and heavy packages stay where they belong (docs/structure.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lever_mlflow"
LAYERS = [
    {"exceptions", "types", "prompt", "vqa_accuracy", "rewards", "objectives"},
    {
        "distributed", "folders", "hub_dataset", "images", "json_files", "okvqa", "mini", "rl_data", "model_files", "features",
        "pools", "selector",
        "group_batches", "validation", "training", "training_state", "diagnosis", "curves",
        "vision_cache", "vlm", "vlm_server", "answer_cache", "checkpoint", "overlap",
        "paired", "results", "html_page", "demonstration_pool", "served_queries",
    },
    {"rollout", "gate", "train_rce", "train_grpo", "evaluate", "resources", "retriever"},
    {
        "compare", "findings", "report", "tracking", "registry", "champion", "model_card", "promotion", "status", "serving",
        "served_retriever",
    },
    {"steps", "pipeline"},
]  # fmt: skip
STAGES = {"rollout", "gate", "train_rce", "train_grpo", "evaluate"}
ONLY_IN = {
    "mlflow": LAYERS[3] | LAYERS[4],
    "great_expectations": {"gate"},
    "accelerate": {"distributed"},
    "transformers": {"features", "vlm", "model_files", "mini"},
    "openai": {"vlm_server"},
    "pydantic": {"served_queries", "served_retriever"},
    "click": {"mini"},
    "datasets": {"hub_dataset"},
}


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def layer_of(module):
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def test_every_module_has_a_layer():
    assert {module_of(path) for path in files()} == set().union(*LAYERS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = module_of(path)
    for name in imports_of(path):
        if name.startswith("lever_mlflow.") and (other := name.split(".")[1]) in set().union(*LAYERS) and other != own:
            assert layer_of(other) <= layer_of(own), f"{own} imports {other} from a higher layer"
            assert not ({own, other} <= STAGES), f"stage {own} imports stage {other}"
        package = name.split(".")[0]
        assert own in ONLY_IN.get(package, {own}), f"{own} imports {package}"


def test_entry_points_import_nothing_heavy_at_the_top():
    for path in (PACKAGE.parent / "entrypoints").glob("*.py"):
        top = {
            name.split(".")[0] for node in ast.parse(path.read_text(encoding="utf-8")).body for name in imports_of_node(node)
        }
        assert not top & {"torch", "mlflow", "transformers", "great_expectations", "pandas", "numpy"}, path


def imports_of_node(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
