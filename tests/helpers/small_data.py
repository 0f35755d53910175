"""Small data: a data set in the official OK-VQA files, and trials that something can be learned from."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lever_mlflow.trials.rl_data import Group, Trial


def write_okvqa_split(root: Path, split: str, count: int, *, first_image: int = 1, per_image: int = 2) -> None:
    """Writes questions, annotations and images of one split exactly as OK-VQA and COCO lay them out."""
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


def learnable_groups(n_queries: int = 40, pool: int = 12, shots: int = 2, trials: int = 10, dim: int = 16, seed: int = 0):
    """Returns features [S, D] and groups in which a trial is right when it holds the candidate least like its query."""
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
