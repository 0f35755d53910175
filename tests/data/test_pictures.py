"""A query never sees its own picture, whatever ids the data set gives its images."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_data import write_okvqa_split

from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.data.features import fused_features
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.pictures import with_pictures
from lever_mlflow.evaluation.answering import Answering
from lever_mlflow.evaluation.policies import SIMILARITY_BASELINES
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.gate.tables import query_table, trial_table
from lever_mlflow.library import make_retriever
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.requests import Query
from lever_mlflow.settings import EvalSettings, RolloutSettings
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data
from lever_mlflow.trials.rollout import rollout

TRAIN_TWINS = {7: 1, 8: 2, 9: 3, 10: 4, 11: 5, 12: 6}  # training images that show the picture of another one
VAL_TWINS = {3: 1, 4: 2, 6: 5}  # evaluation images that show that of a training image, or (6) of evaluation image 5


def image(root, split, image_id):
    return root / f"{split}2014" / f"COCO_{split}2014_{image_id:012d}.jpg"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """24 training items on images 1 to 12, and 12 evaluation items on images 1 to 6, whose ids begin anew."""
    root = tmp_path_factory.mktemp("twins")
    write_okvqa_split(root, "val", 212, first_image=101)  # other pictures than those of training
    pictures = [image(root, "val", number).read_bytes() for number in range(101, 107)]
    shutil.rmtree(root)
    root.mkdir()
    write_okvqa_split(root, "train", 24)
    write_okvqa_split(root, "val", 12)
    for image_id, content in enumerate(pictures, start=1):
        image(root, "val", image_id).write_bytes(content)
    for copy, original in TRAIN_TWINS.items():
        shutil.copy(image(root, "train", original), image(root, "train", copy))
    for copy, original in VAL_TWINS.items():
        shutil.copy(image(root, "val" if copy == 6 else "train", original), image(root, "val", copy))
    return root


@pytest.fixture(scope="module")
def twins(root, tmp_path_factory):
    return Resources(dataset=str(root), cache_dir=tmp_path_factory.mktemp("twins-cache"))


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return PointerSelector(feature_dim=512).eval()


def image_contents(samples, indices):
    """The contents of the images of the items."""
    return {samples[index].image_path.read_bytes() for index in indices}


def test_pictures_are_numbered_by_content_over_both_splits(twins):
    assert [sample.picture for sample in twins.train[::2]] == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert [sample.image_id for sample in twins.train[::2]] == list(range(1, 13))
    numbers = [sample.picture for sample in twins.val[::2]]
    assert (numbers[2:4], numbers[4] == numbers[5]) == ([1, 2], True)
    assert len({*numbers[:2], numbers[4]}) == 3
    assert min(*numbers[:2], numbers[4]) > 12  # ids of other pictures in the training split


def test_ids_stay_the_numbers_where_they_agree_with_contents(okvqa_root):
    samples = load_split(okvqa_root, "train")
    (numbered,) = with_pictures([samples])
    assert all(after is before for after, before in zip(numbered, samples, strict=True))
    assert [sample.picture for sample in samples] == [sample.image_id for sample in samples]


@pytest.mark.parametrize("sampler", ["random", "image-similarity", "text-similarity", "fused-similarity", "mixed", "fixed"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_no_pool_shows_the_picture_of_its_query(twins, sampler, split):
    queries, train = getattr(twins, split), twins.train
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal((2, len(getattr(twins, name)), 8), dtype=np.float32) for name in ("train", "val")}
    tables = {name: fused_features(*pair, "") for name, pair in vectors.items()}
    pools_QN = candidate_pools(queries, train, sampler, 20, 0, tables[split], tables["train"])  # 20 of 20 in training
    for query, pool in zip(queries, pools_QN, strict=True):
        assert query.image_path.read_bytes() not in image_contents(train, pool)
        assert len(set(pool.tolist())) == 20


def test_no_baseline_picks_the_picture_of_its_question(twins):
    settings = EvalSettings(shots=(4,), pool_size=8, pool_sampler="image-similarity")
    questions = QuestionSet(twins.val, twins.train, twins.features("val"), twins.features("train"), settings, 0)
    baselines = questions.baselines()
    for policy in SIMILARITY_BASELINES:
        for question, picks in zip(twins.val, baselines[policy], strict=True):
            assert question.image_path.read_bytes() not in image_contents(twins.train, picks), policy


def test_the_questions_that_choose_the_epoch_are_about_other_pictures(twins):
    settings = EvalSettings(sizes=(4,), shots=(1,), n_selection=4)
    for seed in range(5):
        report, selection = split_questions(twins.val, settings, seed)
        assert not {q.image_path.read_bytes() for q in report} & {q.image_path.read_bytes() for q in selection}


def test_a_rollout_with_a_search_shows_no_query_its_picture_and_the_gate_finds_those_that_do(twins, untrained, tmp_path):
    settings = RolloutSettings(n_queries=6, shots=1, pool_size=4, search_positives=3, beam_width=1, random_pointers=0)
    queries, train = twins.train[:6], twins.train
    groups = rollout(
        queries, train, twins.features("train"), untrained, lambda prompts: [" no"] * len(prompts), settings, seed=0
    )
    for query, group in zip(queries, groups, strict=True):
        assert query.image_path.read_bytes() not in image_contents(train, group.pool)
    bad = (*groups[0].pool[:-1], train[12].index)  # image 7, which shows the picture 1 of the first query
    groups[0] = replace(groups[0], pool=bad, pool_question_ids=None)
    save_rl_data(tmp_path / "rl.json", groups, {})
    data = match_items(load_rl_data(tmp_path / "rl.json"), train, "file")
    table = query_table(data, trial_table(data), train)
    assert table["image_in_pool"].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_served_query_does_not_see_its_picture(twins, untrained, tmp_path):
    retriever = make_retriever(tmp_path / "retriever", twins, untrained, pool_sampler="image-similarity", pool_size=20)
    content = image(twins.dataset_root, "train", 7).read_bytes()
    query = Query("row 0", "what is it?", content)
    other = Query("row 0", "what is it?", image(twins.dataset_root, "val", 1).read_bytes())
    for features in map(retriever.features, ([query], [other])):
        (pool,) = retriever.candidates([query], features)  # known by its content, whatever its features are
        assert content not in image_contents(twins.train, pool)
        assert len(pool) == 20


def test_records_name_one_picture_by_one_number(twins):
    answering = Answering(twins.train, lambda prompts: [""] * len(prompts), lambda prompt: "")
    frame = answering.records(twins.val, "report", {"zero-shot": np.empty((12, 0), dtype=np.int64)}, (1,)).frame
    assert frame["image_id"].tolist() == [sample.picture for sample in twins.val]
    assert frame["image_id"].nunique() == 5  # of six images
