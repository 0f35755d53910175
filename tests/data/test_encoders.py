"""Encoders of other families than CLIP, as tiny models with random weights of the official classes."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny_encoders import BOTH, IMAGES, TEXTS, bert, vit
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from lever_mlflow import mini
from lever_mlflow.data import encoders
from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.data.encoders import Encoder, check_encoder, encoder_sides
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.model_folders import folder_digest
from lever_mlflow.library import make_retriever
from lever_mlflow.pipeline.checkpoints import initial_selector
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.experiment import Experiment, experiment_step
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.serving.requests import Query, Row, read_queries
from lever_mlflow.settings import EvalSettings, GrpoSettings, RceSettings, RolloutSettings, RoundSettings, ServingSettings
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data
from lever_mlflow.trials.rollout import rollout

SIDES = {**dict.fromkeys(BOTH, ("image", "text")), **dict.fromkeys(TEXTS, ("text",)), **dict.fromkeys(IMAGES, ("image",))}
QUESTIONS = ["what is the number?", "what is the digit of a thing number 3 4 5 6 ? " * 9]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: make(root / name) for name, make in {**BOTH, **TEXTS, **IMAGES}.items()}


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)) for size in ((40, 60, 3), (60, 40, 3), (28, 28, 3))]


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def test_the_families_that_are_known_are_what_transformers_says(tmp_path, monkeypatch):
    sides_of = dict(encoders._SIDES)
    assert sides_of["clip"] == ("image", "text")
    monkeypatch.setattr(encoders, "_SIDES", {})
    for family, sides in sides_of.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        assert encoder_sides(tmp_path) == sides, family


@pytest.mark.parametrize("name", SIDES)
def test_features_do_not_depend_on_the_batch(folders, name):
    encoder = Encoder(folders[name])
    assert encoder.sides == encoder_sides(folders[name]) == SIDES[name]
    for side, inputs in (("image", pictures()), ("text", QUESTIONS)):
        if side in encoder.sides:
            encode = getattr(encoder, f"{side}s")
            together = encode(inputs)
            np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
            assert np.abs(together[0] - together[1]).max() > 1e-3
            for alone, expected in zip(inputs, together, strict=True):
                np.testing.assert_allclose(encode([alone])[0], expected, atol=1e-5)


@torch.no_grad()
def test_siglip_pads_texts_to_the_full_length_without_a_mask(folders):
    model, processor = AutoModel.from_pretrained(folders["siglip"]), AutoProcessor.from_pretrained(folders["siglip"])
    tokens = processor.tokenizer(QUESTIONS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    expected = unit(model.get_text_features(input_ids=tokens["input_ids"]).pooler_output)
    masked = unit(model.get_text_features(**tokens).pooler_output)
    features = Encoder(folders["siglip"]).texts(QUESTIONS)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert np.abs(features[0] - masked[0]).max() > 1e-3


@torch.no_grad()
def test_siglip2_takes_images_in_their_aspect_ratio(folders):
    model, processor = AutoModel.from_pretrained(folders["siglip2"]), AutoProcessor.from_pretrained(folders["siglip2"])
    inputs = processor.image_processor(images=pictures(), return_tensors="pt")
    assert sorted(inputs) == ["pixel_attention_mask", "pixel_values", "spatial_shapes"]
    assert inputs["pixel_values"].shape == (
        3,
        16,
        14 * 14 * 3,
    )  # as the folder says; its class would take 256 patches of 16 x 16
    expected = unit(model.get_image_features(**inputs).pooler_output)
    np.testing.assert_allclose(Encoder(folders["siglip2"]).images(pictures()), expected, atol=1e-5)


@torch.no_grad()
def test_a_sentence_encoder_takes_the_mean_of_the_tokens(folders, tmp_path):
    folder = bert(tmp_path / "bert")
    model, words = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    tokens = words(QUESTIONS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"].bool()
    means = torch.stack([states[is_token].mean(dim=0) for states, is_token in zip(hidden, mask, strict=True)])
    np.testing.assert_allclose(Encoder(folder).texts(QUESTIONS), unit(means), atol=1e-5)
    plain = folder_digest(folder, tmp_path / "memo")
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    np.testing.assert_allclose(Encoder(folder).texts(QUESTIONS), unit(hidden[:, 0]), atol=1e-5)
    assert folder_digest(folder, tmp_path / "memo") != plain
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(DataError, match=r"1_Pooling/config\.json: texts are pooled by max_tokens, expected one of mean"):
        check_encoder(folder)
    pooling.unlink()
    layers = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]
    (folder / "modules.json").write_text(json.dumps(layers, indent=1))
    with pytest.raises(DataError, match=r"modules\.json: the model has a layer Dense, which is not applied here"):
        check_encoder(folder)


@torch.no_grad()
def test_a_pooling_layer_without_weights_is_not_made_up(tmp_path):
    folder = vit(tmp_path / "vit")
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    output = model(**processor(images=pictures(), return_tensors="pt"))
    np.testing.assert_allclose(Encoder(folder).images(pictures()), unit(output.pooler_output), atol=1e-5)
    weights = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(Encoder(folder).images(pictures()), unit(output.last_hidden_state[:, 0]), atol=1e-5)
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are missing, such as layernorm\.weight"):
        Encoder(folder)


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError, match="model_type 'qwen2_5_vl', which is no encoder; give a CLIP or SigLIP model"):
        check_encoder(mini.VLM_PATH)
    folder = bert(tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        check_encoder(folder)


@pytest.fixture(scope="module")
def of_encoder(small, folders, tmp_path_factory):
    """of_encoder(name) is the small data set with that encoder."""
    cache_dir = tmp_path_factory.mktemp("encoders-cache")
    return {
        name: Resources(dataset=small.dataset, encoder=str(folders[name]), cache_dir=cache_dir) for name in folders
    }.__getitem__


@pytest.mark.parametrize(("name", "side", "other"), [("bert", "text", "image"), ("dinov2", "image", "text")])
def test_an_encoder_of_one_side_goes_through_all_stages(of_encoder, name, side, other, tmp_path):
    resources = of_encoder(name)
    resources.check()
    features = resources.features("train")
    assert (features.sides, features.fusion) == ((side,), side)
    assert (getattr(features, f"{side}_SD").shape, getattr(features, f"{other}_SD").shape) == ((40, 32), (40, 0))
    start = initial_selector(Context(resources), "random")
    assert (start.fusion, start.config["feature_dim"]) == (side, 32)

    recording = RolloutSettings(n_queries=12, shots=1, pool_size=8, pool_sampler=f"{side}-similarity", search_positives=2)
    answer = lambda prompts: [" thing 3"] * len(prompts)  # noqa: E731
    groups = rollout(resources.train[:12], resources.train, features, start, answer, recording, seed=0)
    assert {trial.gen_method for group in groups for trial in group.trials} >= {"beam", "retrieval"}
    expected = candidate_pools(resources.train[:1], resources.train, f"{side}-similarity", 8, 0, features, features)[0].tolist()
    assert list(groups[0].pool) == expected

    settings = RceSettings(fusion=side, epochs=1)
    save_rl_data(tmp_path / "rl.json", groups, {})
    *_, epoch = train_rce(load_rl_data(tmp_path / "rl.json"), features.of(side), settings, seed=0)
    evaluation = EvalSettings(shots=(1,), pool_sampler="random", pool_size=8)
    questions = QuestionSet(resources.val, resources.train, resources.features("val"), features, evaluation, 0)
    similar = [policy for policy in questions.baselines() if "similarity" in policy]
    assert similar == [f"{side}-similarity", f"{side}-similarity (full training set)"]

    retriever = make_retriever(
        tmp_path / "retriever", resources, epoch.selector, pool_sampler=f"{side}-similarity", pool_size=8
    )
    sample = resources.val[0]
    by_content = retriever.retrieve([Query("row 0", sample.question, sample.image_path.read_bytes())], 2)[0]
    vector = np.array(getattr(resources.features("val"), f"{side}_SD")[0])
    row = Row(**{f"{side}_features": vector.tolist()})
    by_features = retriever.retrieve(read_queries([row], retriever.feature_dims, ServingSettings()), 2)[0]
    assert [item.index for item in by_content.demonstrations] == [item.index for item in by_features.demonstrations]
    with pytest.raises(ParameterError, match=f"row 0: holds {other}_features; give question and image, or {side}_features$"):
        read_queries([Row(**{f"{other}_features": vector.tolist()})], retriever.feature_dims, ServingSettings())


@pytest.mark.parametrize("name", BOTH)
def test_an_encoder_of_both_sides_is_served(of_encoder, name, tmp_path):
    resources = of_encoder(name)
    selector = initial_selector(Context(resources), "random")
    retriever = make_retriever(tmp_path / "retriever", resources, selector, pool_size=8)
    sample, table = resources.val[0], resources.features("val")
    queries = [Query("row 0", sample.question, sample.image_path.read_bytes())]
    np.testing.assert_allclose(retriever.features(queries).fused_SD[0], table.fused_SD[0], atol=1e-5)
    assert len(retriever.retrieve(queries, 2)[0].demonstrations) == 2


def test_what_an_encoder_does_not_give_is_refused_before_any_work(of_encoder, small):
    context = Context(of_encoder("bert"))
    needs = r"takes features of images and texts, but the encoder encodes texts only; choose"
    with pytest.raises(
        ParameterError, match=rf"^pool_sampler=fused-similarity {needs} pool_sampler=text-similarity, random or fixed"
    ):
        rollout_step(context, RolloutSettings())
    with pytest.raises(ParameterError, match=r"^pool_sampler=image-similarity takes features of images, but"):
        rollout_step(context, RolloutSettings(pool_sampler="image-similarity"))
    features = context.resources.features("train")
    for fusion in ("mean", "concat", "image"):
        with pytest.raises(ParameterError, match=rf"^fusion={fusion} takes features of .*; choose fusion=text$"):
            features.of(fusion)
    sampled = {"pool_sampler": "random"}
    experiment = Experiment(
        (0.1,), RolloutSettings(**sampled), RceSettings(), RoundSettings(), GrpoSettings(), EvalSettings(**sampled), "en", {}
    )
    with pytest.raises(ParameterError, match=rf"^fusion=mean {needs} fusion=text"):
        experiment_step(context, experiment)
    both = small.features("train")
    assert both.of("text") is both.text_SD  # one side of CLIP alone is a choice that there is
    assert both.of("image") is both.image_SD
