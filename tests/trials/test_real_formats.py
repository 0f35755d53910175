"""Runs rollout to evaluation on data in the official OK-VQA and COCO layout, with images of every kind and damaged items."""

import json
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from helpers.projects import facts, run_step
from helpers.small_data import write_okvqa_split
from PIL import Image

from entrypoints.rollout import main as rollout_command
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import read_image
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import evaluate_step
from lever_mlflow.pipeline.gate import validate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import read_rl_data, rollout_step
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.runs import artifacts
from lever_mlflow.settings import (
    DataSettings,
    EvalSettings,
    GateSettings,
    GrpoSettings,
    RceSettings,
    RolloutSettings,
    RoundSettings,
)
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data

ONE_ROUND = RoundSettings(rounds=1)

ROLLOUT = RolloutSettings(
    n_queries=12, pool_size=8, beam_width=2, temperatures=(1.0,), samples_per_temperature=1, random_pointers=1
)
EVALUATION = EvalSettings(sizes=(4, 8), shots=(1, 2), n_selection=4, pool_size=8)


def image(root, split, image_id):
    return root / f"{split}2014" / f"COCO_{split}2014_{image_id:012d}.jpg"


def picture(seed, width=60, height=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Writes 40 training questions on 20 images and 24 for evaluation on 12, some images of rare kinds."""
    root = tmp_path / "real"
    write_okvqa_split(root, "train", 40, first_image=1)
    write_okvqa_split(root, "val", 24, first_image=101)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: to be turned by 90 degrees
    clear = picture(3).quantize(16)
    for split, first in (("train", 1), ("val", 101)):
        picture(1).convert("CMYK").save(image(root, split, first))
        picture(2).convert("L").save(image(root, split, first + 1))
        clear.save(image(root, split, first + 2), "PNG", transparency=0)  # Pillow goes by the content, not the name
        picture(4).save(image(root, split, first + 3), exif=turned)
        picture(5, 3, 1).save(image(root, split, first + 4))
        picture(6, 1, 1).save(image(root, split, first + 5))
    return root


def line(root, cache_dir, **data):
    resources = Resources(dataset=str(root), cache_dir=cache_dir, data=DataSettings(**data))
    resources.check()
    return Context(resources, gate=GateSettings(on_bad_data="warn", max_shots=2))


def damage(root):
    """Makes six training questions and two for evaluation unusable."""
    image(root, "train", 1).unlink()  # questions 10 and 11
    content = image(root, "train", 7).read_bytes()
    image(root, "train", 7).write_bytes(content[: len(content) // 2])  # 70 and 71
    picture(7, 57, 14).save(image(root, "train", 8))  # 80 and 81: at 56 x 56 pixels no patch is left of its height
    image(root, "val", 110).write_text("not an image")  # 1100 and 1101


def test_images_are_decoded_as_they_are_stored(root):
    for image_id, size in ((1, (60, 40)), (2, (60, 40)), (3, (60, 40)), (4, (60, 40)), (5, (3, 1)), (6, (1, 1))):
        decoded = read_image(image(root, "train", image_id))
        assert (decoded.mode, decoded.size) == ("RGB", size), image_id
    stored = np.asarray(picture(3).quantize(16).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(image(root, "train", 3))), stored)  # under the transparency too
    grey = np.asarray(read_image(image(root, "train", 2)))
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.slow
def test_rollout_to_evaluation_with_bad_items_left_out(root, mlflow_store, cache_dir, caplog):
    whole = line(root, cache_dir)
    digest = whole.resources.dataset_digest
    damage(root)
    with pytest.raises(DataError) as error:
        line(root, cache_dir)
    for part in (
        f"{root}: items that cannot be used. train: 2 with a missing image (question_id 10, question_id 11: ",
        "2 with an image that does not decode (question_id 70, question_id 71: ",
        "2 with an image too narrow for the VLM (question_id 80, question_id 81: ",
        ". val: 2 with an image that does not decode (question_id 1100, question_id 1101: ",
        "leave them out with on_bad_item=skip",
    ):
        assert part in str(error.value)

    skipping = line(root, cache_dir, on_bad_item="skip")
    kinds = "2 with a missing image, 2 with an image that does not decode, 2 with an image too narrow for the VLM"
    assert f"{root}: 6 train questions are left out: {kinds}" in caplog.messages
    assert skipping.resources.dataset_digest != digest
    ids = [sample.question_id for sample in skipping.resources.train]
    assert ids == [10 * i + j for i in range(1, 21) for j in range(2) if i not in (1, 7, 8)]

    rollout = run_step(lambda: rollout_step(skipping, ROLLOUT))
    recorded = json.loads(artifacts.artifact(rollout.info.run_id, "rl_data.json").read_text())
    for index, entry in recorded.items():
        if index != "_meta":
            assert ids[int(index)] == entry["query"]["question_id"]
    data = read_rl_data(skipping, rollout.info.run_id)
    rce = run_step(lambda: rce_step(skipping, data, RceSettings(epochs=1)))
    grpo = run_step(lambda: grpo_step(skipping, data, f"models:/{facts(rce)['best_model']}", GrpoSettings(epochs=1), ONE_ROUND))
    evaluation = run_step(lambda: evaluate_step(skipping, grpo.info.run_id, EVALUATION))
    for run in (rollout, rce, grpo, evaluation):
        assert (run.info.status, run.data.params["on_bad_item"]) == ("FINISHED", "skip")
        assert run.data.tags["lever.skipped_items"] == f"train: {kinds}; val: 2 with an image that does not decode"
        assert facts(run)["dataset_digest"] == skipping.resources.dataset_digest


def test_positions_among_other_items_are_refused(root, mlflow_store, cache_dir, tmp_path):
    whole = line(root, cache_dir, on_bad_item="skip")
    rollout = run_step(lambda: rollout_step(whole, ROLLOUT))
    assert "lever.skipped_items" not in rollout.data.tags
    data = read_rl_data(whole, rollout.info.run_id)
    damage(root)
    skipping = line(root, cache_dir, on_bad_item="skip")
    # without question ids, items are known by their positions only
    path = tmp_path / "by_position.json"
    groups = load_rl_data(artifacts.artifact(rollout.info.run_id, "rl_data.json"), keep_records=True).groups
    save_rl_data(path, [replace(group, query={}, pool_question_ids=None) for group in groups], data.meta)
    message = r"were not recorded on the items at hand \(of the training questions 6 are left out, then 0 were\)"
    with pytest.raises(DataError, match=message):
        run_step(lambda: validate_step(skipping, read_rl_data(skipping, str(path))))
    fewer = run_step(lambda: rollout_step(skipping, ROLLOUT))
    meta = load_rl_data(artifacts.artifact(fewer.info.run_id, "rl_data.json")).meta
    assert (meta["skipped_train"], meta["dataset_digest"]) == (6, skipping.resources.dataset_digest)
    run_step(lambda: validate_step(skipping, read_rl_data(skipping, fewer.info.run_id)))
    assert mlflow.last_active_run().info.status == "FINISHED"


def test_rl_data_survive_a_data_set_with_items_left_out(root, mlflow_store, cache_dir):
    whole = line(root, cache_dir, on_bad_item="skip")
    rollout = run_step(lambda: rollout_step(whole, ROLLOUT))
    recorded = {group.query["question_id"]: group for group in read_rl_data(whole, rollout.info.run_id).groups}
    damage(root)
    skipping = line(root, cache_dir, on_bad_item="skip")
    ids = [sample.question_id for sample in skipping.resources.train]
    data = read_rl_data(skipping, rollout.info.run_id)
    for group in data.groups:
        former = recorded[group.query["question_id"]]
        demonstrations = [[former.pool_question_ids[p] for p in trial.pointer] for trial in former.trials]
        expected = [question_ids for question_ids in demonstrations if set(question_ids) <= set(ids)]
        assert [[ids[group.pool[p]] for p in trial.pointer] for trial in group.trials] == expected
    n_trials = sum(len(group.trials) for group in recorded.values())
    assert data.dropped == {"left_out": n_trials - sum(len(group.trials) for group in data.groups)}
    assert data.dropped["left_out"] > 0


def test_nothing_left_is_an_error_even_when_skipping(root, cache_dir):
    for path in (root / "val2014").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no val item can be used. val: 24 with a missing image"):
        line(root, cache_dir, on_bad_item="skip")


def test_options_of_a_hub_data_set_without_one(root, cache_dir):
    with pytest.raises(ParameterError, match=r"takes no hf_columns or hf_splits; give dataset=hf:NAME"):
        line(root, cache_dir, hf_columns={"image": "picture"})


def test_the_option_of_the_entry_points(root, mlflow_store, cache_dir, monkeypatch):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    damage(root)
    arguments = [f"--dataset={root}", "--n_queries=4", "--pool_size=8"]
    with pytest.raises(DataError, match="train: 2 with a missing image"):
        rollout_command.main(arguments, standalone_mode=False)
    assert mlflow.last_active_run().info.status == "FAILED"
    rollout_command.main([*arguments, "--on_bad_item=skip"], standalone_mode=False)
    assert mlflow.last_active_run().data.tags["lever.skipped_items"].startswith("train: 2 with a missing image")
