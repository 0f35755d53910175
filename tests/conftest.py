"""Fixtures: a real MLflow store in a temporary folder, and a small data set in the official OK-VQA layout."""

import json
import os
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from lever_mlflow.rl_data import Group, Trial
from lever_mlflow.types import Sample

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    """A fresh sqlite store with a file artifact folder; its URI."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("test")
    yield uri
    while mlflow.active_run():
        mlflow.end_run()


def write_okvqa_split(root: Path, split: str, count: int, *, first_image: int = 1, per_image: int = 2) -> None:
    """Questions, annotations and images of one split exactly as OK-VQA and COCO lay them out."""
    subset = f"{split}2014"
    (root / subset).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(first_image)
    questions, annotations = [], []
    for i in range(count):
        image_id = first_image + i // per_image
        path = root / subset / f"COCO_{subset}_{image_id:012d}.jpg"
        if not path.exists():
            Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(path)
        question_id = image_id * 10 + i % per_image
        questions.append({"image_id": image_id, "question": f"what is thing {i}?", "question_id": question_id})
        answers = [
            {"answer_id": a + 1, "raw_answer": f"thing {i}", "answer_confidence": "yes", "answer": f"thing {i}"}
            for a in range(10)
        ]
        annotations.append(
            {
                "image_id": image_id,
                "answer_type": "other",
                "question_type": "four",
                "question_id": question_id,
                "answers": answers,
                "confidence": 3,
            }
        )
    head = {"info": {}, "license": {}, "data_subtype": subset}
    (root / f"OpenEnded_mscoco_{subset}_questions.json").write_text(
        json.dumps({**head, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions})
    )
    (root / f"mscoco_{subset}_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))


@pytest.fixture
def okvqa_root(tmp_path):
    """20 training questions on 10 images, 8 evaluation questions on 4 others."""
    root = tmp_path / "okvqa"
    root.mkdir()
    write_okvqa_split(root, "train", 20, first_image=1)
    write_okvqa_split(root, "val", 8, first_image=101)
    return root


@pytest.fixture
def samples():
    """30 samples on 15 images, without files."""
    return [Sample(i, 100 + i, i // 2, f"question {i}?", Path(f"{i // 2}.jpg"), (f"answer {i}",) * 10) for i in range(30)]


def learnable_groups(n_queries: int = 40, pool: int = 12, shots: int = 2, trials: int = 10, dim: int = 16, seed: int = 0):
    """Features [S, D] and groups in which a trial is right when it holds the candidate least like its query."""
    rng = np.random.default_rng(seed)
    features_SD = rng.standard_normal((n_queries * 2 + 60, dim)).astype(np.float32)
    features_SD /= np.linalg.norm(features_SD, axis=1, keepdims=True)
    groups = []
    for query in range(n_queries):
        members = rng.choice(np.arange(n_queries, len(features_SD)), pool, replace=False)
        best = int(np.argmin(features_SD[members] @ features_SD[query]))
        pointers = {tuple(rng.choice(pool, shots, replace=False).tolist()) for _ in range(trials)}
        pointers.add((best, (best + 1) % pool))
        group = [Trial(p, float(best in p), float(best in p), "random") for p in sorted(pointers)]
        groups.append(Group(query, tuple(members.tolist()), tuple(group)))
    return features_SD, groups
