"""The baselines step: evaluated once, shared by evaluations, and named where its files are damaged."""

from pathlib import Path

import pytest
from helpers.projects import run_step
from mlflow import MlflowClient

from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.exceptions import DataError
from lever_mlflow.pipeline.baselines import baselines_step, read_baselines
from lever_mlflow.settings import EvalSettings

SMALL = EvalSettings(sizes=(5,), shots=(1,), n_selection=3, n_oracle=2, pool_size=4)


def test_damaged_files_are_named_with_the_run_to_delete(local):
    line = local()
    run = run_step(lambda: baselines_step(line, SMALL))
    baselines = read_baselines(run.info.run_id)
    assert baselines.records.by_question("zero-shot").size == 5
    assert baselines.best_single.questions == 2
    train, questions = line.resources.train, split_questions(line.resources.val, SMALL, seed=0).report
    features = line.resources.features("val"), line.resources.features("train")
    pools_QN = candidate_pools(questions, train, SMALL.pool_sampler, SMALL.pool_size, 0, *features)
    right = [any(query.accuracy(train[i].answer) >= 0.5 for i in pool) for query, pool in zip(questions, pools_QN, strict=True)]
    assert run.data.metrics["pool/answer_rate"] == sum(right) / 5
    folder = Path(MlflowClient().get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"))
    for name, content in (("records.parquet", b"PAR1"), ("best_single.json", b"")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.*delete the run {run.info.run_id} of the baselines first"):
            read_baselines(run.info.run_id)
        (folder / name).write_bytes(whole)
    assert read_baselines(run.info.run_id).best_single == baselines.best_single
