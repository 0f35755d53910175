"""Small evaluations and their records, for the tests of the registry, of promotions and of comparisons."""

import numpy as np
import pandas as pd

from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import Evaluation, EvaluationInputs, Registration, ResourceNames, RLDataSummary
from lever_mlflow.registry.versions import beta_alias
from lever_mlflow.settings import EvalSettings, GrpoSettings, RoundSettings
from lever_mlflow.vlm.profiles import PROFILES

NAME = "lever-selector-mini-mini"
SHOTS = (1, 2)
DIGESTS = ("dataset_digest", "vlm_digest", "profile_digest", "encoder_digest", "rl_data_digest", "start_digest")


def records_of(policies, part="report"):
    """Records of policies, given as accuracies [shots, Q] or [draws, shots, Q]; zero-shot is asked at 0 shots."""
    rows = [
        (policy, draw, part, position, 1000 + position, 0 if policy == "zero-shot" else shots, [7, 8][:shots], float(accuracy))
        for policy, accuracies in policies.items()
        for draw, of_draw in enumerate(accuracies if np.ndim(accuracies) == 3 else [accuracies])
        for shots, of_shots in zip(SHOTS, of_draw, strict=False)
        for position, accuracy in enumerate(of_shots)
    ]
    columns = ["policy", "draw", "part", "position", "question_id", "shots", "picks", "accuracy"]
    return EvaluationRecords(pd.DataFrame(rows, columns=columns).assign(prompt="digest", answer="answer"))


def evaluation_of(questions, kl_beta=0.12, run_id="run", *, training=None, resources=None, settings=None, **inputs):
    """The evaluation of a GRPO run whose first epoch is the best, on so many questions."""
    choices = {"sizes": (questions // 2, questions), "shots": SHOTS, "n_selection": 9, "random_draws": 2, "n_oracle": 0}
    return Evaluation(
        kl_beta=kl_beta,
        best_epoch=1,
        run_id=run_id,
        git_commit="c0ffee",
        settings=EvalSettings(**choices | (settings or {})),
        rounds=RoundSettings(rounds=1),
        training=training or GrpoSettings(kl_beta=kl_beta, lr=5e-6, epochs=2),
        inputs=EvaluationInputs(
            **{
                **{name: f"digest of {name.removesuffix('_digest')}" for name in DIGESTS},
                "seed": 0,
                "reward_mode": "hard_plus_soft",
                "start": "rce epoch 4",
                "start_uri": "models:/m-1",
                "training_seed": 0,
                "grpo_run": "g1",
                "gate": "pass",
                **inputs,
            },
        ),
        rl_data=RLDataSummary(source="rl_data.json", n_queries=60, n_positive_queries=30, mean_reward=0.5),
        resources=resources or ResourceNames(dataset="mini", vlm="mini", encoder="mini"),
        epochs=(),
        profile=PROFILES["mini"],
        accuracy=(),
        selection_accuracy={1: 0.5, 2: 0.25},
        checkpoints=(),
        overlap=(),
        best_single=None,
        registration=Registration(name=NAME, alias=beta_alias(kl_beta), model_id="m-2", checkpoint_digest="weights"),
    )
