"""The retriever: what it picks is what evaluation picks, and what it is made of comes back whole."""

import base64
import hashlib
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from lever_mlflow import mini
from lever_mlflow.data import features
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.serving.requests import Query
from lever_mlflow.serving.retriever import ENCODER, RetrieverSettings, load_retriever
from lever_mlflow.settings import EvalSettings
from lever_mlflow.vlm.profiles import PROFILES


def queries_of(samples):
    return [Query(f"row {i}", sample.question, sample.image_path.read_bytes()) for i, sample in enumerate(samples)]


def by_features(table, rows):
    return [Query(f"row {i}", features=(np.array(table.image_SD[i]), np.array(table.text_SD[i]))) for i in rows]


def ids(retrieved):
    return [[sample.question_id for sample in item.demonstrations] for item in retrieved]


@pytest.fixture(scope="module")
def retriever(make_retriever):
    return load_retriever(make_retriever())


def evaluation_picks(small, selector, sampler):
    """Question ids that evaluation picks for the evaluation questions, and its candidate pools."""
    settings = EvalSettings(shots=(1, 3), pool_size=12, pool_sampler=sampler)
    questions = QuestionSet(small.val, small.train, small.features("val"), small.features("train"), settings, seed=0)
    picks_QK = questions.learned({"selector": selector})["selector"]
    return [[small.train[i].question_id for i in picks] for picks in picks_QK], questions.pools_QN


def test_features_of_a_query_are_those_of_evaluation(retriever, small):
    table = retriever.features(queries_of(small.val))
    expected = small.features("val")
    for kind in ("image_SD", "text_SD", "fused_SD", "concat_SD"):
        np.testing.assert_allclose(getattr(table, kind), getattr(expected, kind), rtol=0, atol=1e-6)
    alone = retriever.features(queries_of(small.val)[5:6])
    np.testing.assert_allclose(alone.fused_SD[0], expected.fused_SD[5], rtol=0, atol=1e-6)


def test_large_images_are_not_held_at_once(retriever, monkeypatch):
    """A file of 6 kB may hold a million pixels, and a request thousands of such files."""
    contents, batches = {}, []
    for side in (100, 1000, 2500, 4000):
        contents[side] = io.BytesIO()
        Image.new("L", (side, side), side % 256).save(contents[side], "PNG")

    def images(batch):
        batches.append([image.width for image in batch])
        return np.eye(1, 512, dtype=np.float32).repeat(len(batch), axis=0)

    monkeypatch.setattr(retriever.encoder, "images", images)
    sides = [4000, 100, 4000, 2500, 2500, 2500, *[100] * 18, *[1000] * 17]
    queries = [Query(f"row {i}", "what?", contents[side].getvalue()) for i, side in enumerate(sides)]
    table = retriever.features(queries)
    assert batches == [[4000], [100], [4000], [2500] * 2, [2500, *[100] * 15], [100, 100, 100, *[1000] * 13], [1000] * 4]
    assert table.image_SD.shape == (len(sides), 512)
    assert [sum(side**2 for side in batch) <= 16_000_000 for batch in batches] == [True] * 7


@pytest.mark.parametrize("sampler", ["image-similarity", "text-similarity", "fused-similarity", "fixed"])
def test_picks_are_those_of_evaluation_where_pools_depend_on_features_alone(make_retriever, small, sampler):
    retriever = load_retriever(make_retriever(pool_sampler=sampler))
    expected, _ = evaluation_picks(small, retriever.selector, sampler)
    assert ids(retriever.retrieve(queries_of(small.val), 3)) == expected
    assert ids(retriever.retrieve(by_features(small.features("val"), range(8)), 3)) == expected


def test_picks_from_the_same_random_pools_are_those_of_evaluation(retriever, small):
    expected, pools_QN = evaluation_picks(small, retriever.selector, "random")
    table = retriever.features(queries_of(small.val))
    picks_QK, logprobs_Q = retriever.pick(table, pools_QN, 3)
    assert [[small.train[i].question_id for i in picks] for picks in picks_QK] == expected
    train_SD = small.features("train").fused_SD
    pointers_QK = [[pool.tolist().index(i) for i in picks] for pool, picks in zip(pools_QN, picks_QK, strict=True)]
    inputs = torch.tensor(table.fused_SD), torch.tensor(train_SD[pools_QN]), torch.tensor(pointers_QK)[:, None]
    assert logprobs_Q == pytest.approx(retriever.selector.logprobs(*inputs)[:, 0].tolist(), abs=1e-5)
    assert len(np.unique(logprobs_Q)) == 8


def test_a_query_has_a_pool_of_its_own_in_any_request(retriever, make_retriever, small):
    queries = queries_of(small.val)
    together = retriever.candidates(queries, retriever.features(queries))
    for row, query in enumerate(queries):
        assert retriever.candidates([query], retriever.features([query]))[0].tolist() == together[row].tolist()
    assert len({tuple(pool) for pool in together.tolist()}) == 8
    assert all(len(set(pool)) == 12 for pool in together.tolist())
    other = load_retriever(make_retriever(seed=1))
    assert other.candidates(queries, retriever.features(queries)).tolist() != together.tolist()
    first = retriever.retrieve(queries, 2)
    assert retriever.retrieve(queries[::-1], 2)[::-1] == [
        (item.demonstrations, pytest.approx(item.logprob, abs=1e-5)) for item in first
    ]


@pytest.mark.parametrize("sampler", ["random", "image-similarity", "fused-similarity", "mixed", "fixed"])
def test_no_candidate_is_about_the_own_image(make_retriever, small, sampler):
    retriever = load_retriever(make_retriever(pool_sampler=sampler, pool_size=38))  # all others
    sample, content = small.train[7], io.BytesIO()
    Image.open(sample.image_path).save(content, "PNG")  # the same image in another file
    query = Query("row 0", "something else?", content.getvalue())
    for queries in ([query], by_features(small.features("train"), [7])):
        (pool,) = retriever.candidates(queries, retriever.features(queries))
        assert sorted({small.train[i].image_id for i in pool}) == [i for i in range(1, 21) if i != sample.image_id]


@pytest.mark.parametrize("sampler", ["fused-similarity", "mixed"])
def test_a_request_does_not_go_through_all_items(make_retriever, small, sampler):
    class Samples(list):
        """Counts how often all items are gone through."""

        walks = 0

        def __iter__(self):
            Samples.walks += 1
            return super().__iter__()

    retriever = load_retriever(make_retriever(pool_sampler=sampler))
    retriever = replace(retriever, pool=replace(retriever.pool, samples=Samples(retriever.pool.samples)))
    first = ids(retriever.retrieve(queries_of(small.train[:8]), 2))
    assert Samples.walks == 1
    assert ids(retriever.retrieve(queries_of(small.train[:8]), 2)) == first
    assert ids(retriever.retrieve(queries_of(small.train[3:4]), 2)) == first[3:4]
    assert Samples.walks == 1


def test_messages_are_the_prompt_of_the_vlm(retriever, small):
    (query,) = queries_of(small.val[2:3])
    system, user = retriever.messages(query, retriever.pool.samples[4:5])
    assert system == {
        "role": "system",
        "content": [{"type": "text", "text": "Answer the last question in a few words, after 1 solved example."}],
    }
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image_url", "text", "image_url", "text"]
    assert [part["text"] for part in user["content"] if part["type"] == "text"] == [
        "Question: what is thing 4? Short answer: thing 4\n",
        "Question: what is thing 2? Short answer:",
    ]
    for part, sample in zip(user["content"][::2], [small.train[4], small.val[2]], strict=True):
        head, _, content = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.size == (56, 56)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(sample.image_path)))


def test_features_cannot_be_shown(retriever, small):
    with pytest.raises(ParameterError, match="row 0: as_messages needs question and image"):
        retriever.messages(by_features(small.features("val"), [0])[0], [])


def test_shots_that_the_pool_does_not_have(retriever, small):
    assert len(ids(retriever.retrieve(queries_of(small.val[:1]), 12))[0]) == 12
    for shots in (0, -1, 13):
        with pytest.raises(ParameterError, match=f"shots={shots} with a pool of 12 candidates; choose 1 to 12$"):
            retriever.retrieve(queries_of(small.val[:1]), shots)


def test_threads_get_the_same_answers(retriever, small):
    queries = queries_of(small.val)
    expected = [ids(retriever.retrieve([query], 2)) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: ids(retriever.retrieve([query], 2)), queries)) == expected


def test_the_encoder_is_loaded_once_and_must_be_the_recorded_one(make_retriever, tmp_path, monkeypatch):
    folder = make_retriever()
    first = load_retriever(folder)
    monkeypatch.setattr(features, "Encoder", None)  # a second loading would fail
    assert load_retriever(folder).encoder is first.encoder
    foreign = make_retriever(encoder_digest="0123456789abcdef")
    digest = first.settings.encoder_digest
    with pytest.raises(DataError, match=f"encoder mini: .*clip: an encoder of digest {digest}, expected 0123456789abcdef"):
        load_retriever(foreign)
    away = make_retriever(encoder=str(tmp_path / "away"))
    with pytest.raises(DataError, match=f"away.*{ENCODER} may name its folder"):
        load_retriever(away)
    shutil.copytree(mini.CLIP_PATH, tmp_path / "here")
    monkeypatch.setenv(ENCODER, str(tmp_path / "here"))
    assert load_retriever(away).encoder is first.encoder


def test_the_digest_covers_all_but_where_the_encoder_is(retriever):
    settings = retriever.settings
    others = {
        "checkpoint_digest": "c",
        "dataset_digest": "d",
        "encoder_digest": "e",
        "profile": PROFILES["openai"],
        "pool_sampler": "mixed",
        "pool_size": 13,
        "seed": 1,
        "order": "similar-last",
    }
    assert {field.name for field in fields(RetrieverSettings)} == {*others, "encoder"}
    digests = {replace(settings, **{name: value}).digest for name, value in others.items()}
    assert len({settings.digest, *digests}) == 9
    assert replace(settings, encoder="elsewhere").digest == settings.digest


@pytest.mark.parametrize("name", ["retriever.json", "pool/pool.json", "pool/features.safetensors", "pool/images.safetensors"])
def test_a_damaged_file_is_named(make_retriever, name):
    folder = make_retriever()
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"retriever\d+/.*[;:] get the model again"):
        load_retriever(folder)


def test_items_and_features_that_do_not_belong_together(make_retriever):
    folder = make_retriever()
    content = json.loads((folder / "pool" / "pool.json").read_text())
    (folder / "pool" / "pool.json").write_text(json.dumps({**content, "items": content["items"][:39]}))
    with pytest.raises(DataError, match="39 items, but features of 40"):
        load_retriever(folder)


def test_demonstrations_are_served_in_the_order_of_the_evaluation(make_retriever, retriever, small):
    reversed_retriever = load_retriever(make_retriever(order="similar-last"))
    queries = queries_of(small.val[:5])
    first, last = (served.retrieve(queries, 3) for served in (retriever, reversed_retriever))
    assert ids(last) == [picks[::-1] for picks in ids(first)]
    assert [item.logprob for item in last] == [item.logprob for item in first]


def test_the_default_order_leaves_the_digest_of_a_retriever_as_it_was(retriever):
    """The digest is that of all settings but the encoder's place, from before there was an order."""
    content = {**asdict(retriever.settings), "encoder": ""}
    assert content.pop("order") == "similar-first"
    assert retriever.settings.digest == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    assert replace(retriever.settings, order="similar-last").digest != retriever.settings.digest
