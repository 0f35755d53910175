"""The functions of the package for scripts and notebooks: trials, answers and retrievers without MLflow runs."""

import json

import mlflow
import numpy as np
import pytest
import torch

import lever_mlflow as lever
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.selector.checkpoint import selector_digest

FEW = lever.RolloutSettings(n_queries=6, pool_size=12, beam_width=2, samples_per_temperature=1, random_pointers=1)


@pytest.fixture
def selector():
    """A selector whose picks are far from those of an untrained one."""
    torch.manual_seed(3)
    selector = lever.PointerSelector(feature_dim=512)
    for norm in selector.attn_norms:
        torch.nn.init.normal_(norm.weight)
    return selector


def test_trials_are_those_of_the_rollout_step(small, tmp_path, mlflow_store):
    data = lever.record_rl_data(tmp_path / "rl_data.json", small, FEW)
    assert data == lever.load_rl_data(tmp_path / "rl_data.json")
    assert len(data.groups) == 6
    assert mlflow.search_runs(output_format="list") == []
    with mlflow.start_run() as run:
        rollout_step(Context(small), FEW).execute()
    assert mlflow.get_run(run.info.run_id).data.tags["lever.rl_data_digest"] == data.digest


def test_seed_and_round_decide_the_queries_and_the_selector_the_pointers(small, tmp_path, selector):
    first = lever.record_rl_data(tmp_path / "1.json", small, FEW)
    later = lever.record_rl_data(tmp_path / "2.json", small, FEW, round_number=2)
    trained = lever.record_rl_data(tmp_path / "3.json", small, FEW, selector=selector)
    assert not {g.query_id for g in first.groups} & {g.query_id for g in later.groups}
    assert json.loads((tmp_path / "2.json").read_text())["_meta"]["round"] == 2
    assert [g.query_id for g in trained.groups] == [g.query_id for g in first.groups]
    assert trained.digest != first.digest
    assert selector.training  # it is a copy that draws
    assert lever.record_rl_data(tmp_path / "4.json", small, FEW, seed=1).digest != first.digest


def test_answers_come_in_the_order_of_the_prompts_and_without_what_follows_them(small):
    prompts = [
        lever.Prompt((), small.val[0]),
        lever.Prompt(tuple(small.train[:2]), small.val[0]),
        lever.Prompt((), small.val[0]),
    ]
    raw = small.answer(prompts, "test")
    answers = lever.ask(small, prompts)
    assert answers[0] == answers[2]
    assert [text.strip().startswith(answer) for text, answer in zip(raw, answers, strict=True)] == [True] * 3
    assert not [answer for answer in answers if "Question" in answer or answer != answer.strip()]


def test_a_retriever_picks_what_its_selector_picks_from_the_pools_of_evaluation(small, tmp_path, selector):
    new = lever.make_retriever(tmp_path / "new" / "retriever", small, selector, pool_size=12)
    loaded = lever.load_retriever(tmp_path / "new" / "retriever")
    assert selector_digest(loaded.selector) == selector_digest(selector) == new.settings.checkpoint_digest
    assert (loaded.settings.pool_sampler, loaded.settings.encoder) == ("fused-similarity", "mini")
    sample, train_SD = small.val[0], small.features("train").of("mean")
    query_D = np.array(small.features("val").of("mean")[0])
    pool_N = np.argsort(-(train_SD @ query_D), kind="stable")[:12]
    inputs = torch.from_numpy(query_D)[None], torch.from_numpy(train_SD[pool_N])[None]
    expected = pool_N[selector.eval().greedy(*inputs, 3)[0].numpy()]
    query = lever.Query("a", sample.question, sample.image_path.read_bytes())
    (retrieval,) = loaded.retrieve([query], 3)
    assert [demonstration.index for demonstration in retrieval.demonstrations] == expected.tolist()
    with pytest.raises(FileExistsError):
        lever.make_retriever(tmp_path / "new" / "retriever", small, selector)
