"""Describes the doors that ``benchmarks.mutations`` tries: good inputs of each, and what takes them in."""

from __future__ import annotations

import io
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click
import mlflow
import numpy as np
import torch
import yaml
from mlflow import MlflowClient
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from pydantic import ValidationError

from lever_mlflow.cli import commands
from lever_mlflow.cli.config_files import read_config
from lever_mlflow.comparison import comparing, page, terminal
from lever_mlflow.comparison.from_evaluation import run_of_evaluation
from lever_mlflow.comparison.results import Results, read_results
from lever_mlflow.data.okvqa import describe, read_split, split_files
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import EpochMetrics, Evaluation
from lever_mlflow.exceptions import LeverError
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.files.images import decode_image, read_image
from lever_mlflow.gate import DEFAULT_PROJECT_DIR, GateResult, check
from lever_mlflow.gate.report import format_table, report_html
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.promotion import list_versions, promote_step
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.registry.model_card import describe_version
from lever_mlflow.registry.versions import beta_alias
from lever_mlflow.runs.artifacts import read_json
from lever_mlflow.runs.optional_runs import placeholder_run
from lever_mlflow.runs.steps import project_run, run_here
from lever_mlflow.selector.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.requests import Row
from lever_mlflow.serving.retriever import CHECKPOINT, RetrieverSettings, load_retriever, save_retriever
from lever_mlflow.serving.retriever_model import RequestError, RetrieverModel, input_example
from lever_mlflow.settings import PromotionSettings
from lever_mlflow.training.loop import TrainingState
from lever_mlflow.training.state import load_state, save_state
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.vlm.profiles import PROFILES, find_profile
from lever_mlflow.vlm.prompt import build_messages
from tests.gate import test_fuzz
from tests.helpers import evaluation_samples, small_data

PREDECESSOR = Path(__file__).parents[1] / "tests" / "data" / "predecessor_results.json"
CHECKED = 25  # one in so many goes through what takes long: the whole gate, the report


class Wrong(Exception):
    """Says that an input was taken, but what came of it is wrong."""


def finite(value: Any) -> None:
    """Raises Wrong where JSON would hold NaN or an infinite number."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise Wrong(str(error)) from None


class Door(ABC):
    """Is a way into the library: ``good`` holds the contents of its files by name, and ``enter`` takes one of them changed."""

    name: ClassVar[str]
    share: ClassVar[int]  # of the mutations, in percent
    strict: ClassVar[bool] = True  # whether its files with the ending .json must be valid JSON

    def __init__(self, folder: Path) -> None:
        self.folder, self.good = folder, dict[str, bytes]()
        self.calls = itertools.count()
        folder.mkdir()
        self.prepare()

    @classmethod
    def opened(cls, folder: Path) -> Door:
        """Returns the door with its good inputs in a folder, all of which are taken."""
        door = cls(folder)
        for name, content in sorted(door.good.items()):
            outcome = door.enter(name, content)
            assert outcome[:1].islower(), f"{cls.name}, {name}: {outcome}"
        return door

    @abstractmethod
    def prepare(self) -> None:
        """Fills ``good``."""

    @abstractmethod
    def enter(self, name: str, content: bytes) -> str:
        """Takes an input in and returns the outcome; raises the library's error, or Wrong."""

    def write(self, name: str, content: bytes) -> Path:
        """Writes an input to its file and returns its path."""
        path = self.folder / name
        path.write_bytes(content)
        return path

    def read_all(self, folder: Path) -> None:
        """Makes the files in a folder good inputs, by their paths in the door's folder."""
        self.good |= {
            str(path.relative_to(self.folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


class RLDataDoor(Door):
    """Takes RL data, through the gate where it is their turn, and compares with an independent reading."""

    name, share = "rl-data", 20

    def prepare(self) -> None:
        """Takes a good file of each vintage."""
        self.good = {f"{vintage}.json": json.dumps(content).encode() for vintage, content in test_fuzz.GOOD.items()}

    def enter(self, name: str, content: bytes) -> str:
        """Reads the file, and has every 25th one checked."""
        right = test_fuzz.verdict_of(content.removeprefix(b"\xef\xbb\xbf"))
        try:
            data = load_rl_data(self.write(name, content))
        except LeverError:
            if right != "refused":
                raise Wrong(f"refused, and {right} by the independent reading") from None
            raise
        if right == "refused":
            raise Wrong("taken, and refused by the independent reading")
        if next(self.calls) % CHECKED:
            return "data"
        result = check(data)
        format_table(result)
        report_html(result)
        finite(result.to_json())
        if (result.verdict == "critical") != (right == "critical"):
            raise Wrong(f"{result.verdict}, and {right} by the independent reading")
        return "verdict"


class ResultsDoor(Door):
    """Takes results from elsewhere, through the report where it is their turn."""

    name, share = "results", 15

    def prepare(self) -> None:
        """Takes the predecessor's results."""
        self.good = {"results.json": PREDECESSOR.read_bytes()}

    def enter(self, name: str, content: bytes) -> str:
        """Reads the file, and reports every 25th one."""
        results = read_results(self.write(name, content))
        finite(results.to_json())
        return "results" if next(self.calls) % CHECKED else reported(results)


def reported(results: Results, **records: EvaluationRecords) -> str:
    """Writes all forms of the report, whose pages must not hold what is not escaped."""
    facts = comparing.compare(results, records, seed=0)
    pages = [page.markdown(facts, "en"), page.html(facts, "en", {}), terminal.summary(facts, "en")]
    if "<b>" in pages[0] or "<b>&" in pages[1] or any("\x1b" in text for text in pages[:2]):
        raise Wrong("markup or control characters in a page")
    return "report"


class OkvqaDoor(Door):
    """Takes the official files of a data set."""

    name, share = "data-set", 10

    def prepare(self) -> None:
        """Writes 8 questions about 4 images."""
        small_data.write_okvqa_split(self.folder, "train", 8)
        self.read_all(self.folder)

    def enter(self, name: str, content: bytes) -> str:
        """Reads the split, and puts the good file back."""
        self.write(name, content)
        try:
            split = read_split(self.folder, "train")
        finally:
            self.write(name, self.good[name])
        describe(split.bad)
        if split.left_out + len(split.samples) < 1 or split_files(self.folder, "train").images != self.folder / "train2014":
            raise Wrong("questions got lost")
        return "items"


class ImageDoor(Door):
    """Takes images of the usual formats."""

    name, share = "images", 12

    def prepare(self) -> None:
        """Writes an image in each format."""
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
        for ending in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"):
            content = io.BytesIO()
            image.save(content, ending)
            self.good[f"image.{ending}"] = content.getvalue()
        content = io.BytesIO()
        Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(40, 30)).save(content, "PNG")
        self.good["grey16.PNG"] = content.getvalue()

    def enter(self, name: str, content: bytes) -> str:
        """Decodes the file from disk and from memory, which must agree."""
        image = read_image(self.write(name, content))
        if image.mode != "RGB" or image.tobytes() != decode_image(content).tobytes():
            raise Wrong(f"mode {image.mode}, or other pixels in memory")
        return "image"


class CheckpointDoor(Door):
    """Takes checkpoints: folders, single files of both kinds, and training states."""

    name, share = "checkpoints", 15
    strict = False  # a file of weights beside a damaged description is read without it

    def prepare(self) -> None:
        """Writes a checkpoint in each form."""
        torch.manual_seed(0)
        self.selector = PointerSelector(16, 8).eval()
        weights = self.selector.state_dict()
        save_selector(self.folder / "folder", self.selector, {})
        torch.save({"state_dict": weights, "hyper_parameters": {"num_heads": 1}}, self.folder / "single.pt")
        (self.folder / "alone.safetensors").write_bytes((self.folder / "folder" / "selector.safetensors").read_bytes())
        save_state(self.folder / "state", TrainingState(({"loss": 1.0},), weights, {"step": torch.ones(2)}), {"seed": 0})
        self.read_all(self.folder)
        self.query_BD, self.pool_BND = torch.randn(2, 16), torch.randn(2, 4, 16)

    def enter(self, name: str, content: bytes) -> str:
        """Loads what the file belongs to, asks a selector for picks, and puts the good file back."""
        path = self.write(name, content)
        try:
            if path.parent.name == "state":
                load_state(path.parent)
                return "state"
            selector = load_selector(path.parent if path.parent.name == "folder" else path)
        finally:
            self.write(name, self.good[name])
        if selector.config["feature_dim"] == 16 and not torch.isfinite(selector.greedy(self.query_BD, self.pool_BND, 2)).all():
            raise Wrong("picks that are not finite")
        return "selector"


class ConfigDoor(Door):
    """Takes configuration files, prompt profiles and suites of the data gate."""

    name, share = "configuration", 10

    def prepare(self) -> None:
        """Takes a configuration of many options, a profile and the shipped suites."""
        options = {"dataset": "/data", "seed": 1, "grpo": {"kl_beta": 0.12, "epochs": 5}, "main": {"kl_betas": [0.12, 0.15]}}
        self.commands = {
            name: item for name, item in vars(commands).items() if isinstance(item, click.Command) and name != "cli"
        }
        self.good = {
            "config.yaml": yaml.safe_dump({**options, "validate": {"thresholds": {"pool_size": 3}}}).encode(),
            "profile.json": json.dumps(asdict(PROFILES["mini"])).encode(),
        }
        expectations = self.folder / "gx" / "expectations"
        expectations.mkdir(parents=True)
        for path in (DEFAULT_PROJECT_DIR / "gx" / "expectations").glob("*.json"):
            (expectations / path.name).write_bytes(path.read_bytes())
        self.read_all(expectations)
        self.data = load_rl_data(self.write("rl.json", json.dumps(test_fuzz.GOOD["pools"]).encode()))

    def enter(self, name: str, content: bytes) -> str:
        """Reads the file; RL data are checked with every fourth suite."""
        path = self.write(name, content)
        if name == "config.yaml":
            read_config(str(path), self.commands)
            return "options"
        if name == "profile.json":
            sample = small_sample()
            build_messages([sample], sample, find_profile(str(path)))
            return "profile"
        try:
            finite(check(self.data, project_dir=self.folder).to_json())
        finally:
            self.write(name, self.good[name])
        return "verdict"


def small_sample() -> Any:
    """Returns an item without an image."""
    from lever_mlflow.data.samples import Sample

    return Sample(0, 1, 1, "what?", Path("a.png"), ("this",) * 10)


def retriever_in(folder: Path) -> Path:
    """Writes a retriever over 20 items and returns its folder."""
    small_data.write_okvqa_split(folder / "data", "train", 20)
    small_data.write_okvqa_split(folder / "data", "val", 4, first_image=101)
    resources = Resources(dataset=str(folder / "data"), cache_dir=folder / "cache")
    torch.manual_seed(0)
    selector = PointerSelector().eval()
    save_selector(folder / "selector", selector, {})
    names = selector_digest(selector), resources.dataset_digest, "mini", resources.encoder_digest
    settings = RetrieverSettings(*names, resources.language_model.profile, "fused-similarity", 8, seed=0)
    (folder / "retriever").mkdir()
    save_retriever(folder / "retriever", settings, folder / "selector", resources.train, resources.features("train"))
    return folder / "retriever"


class RequestDoor(Door):
    """Takes requests to a served retriever, as MLflow hands them over."""

    name, share = "requests", 10
    strict = False  # MLflow's server refuses what is no JSON

    def prepare(self) -> None:
        """Loads a retriever, and makes a good request of each kind, from which the mutated ones are made."""
        retriever = retriever_in(self.folder)
        self.model = RetrieverModel()
        self.model.load_context(PythonModelContext({CHECKPOINT: str(retriever / CHECKPOINT)}, {}))
        dims = self.model.retriever.feature_dims
        vectors = {"image_features": [dims.image**-0.5] * dims.image, "text_features": [dims.text**-0.5] * dims.text}
        rows, params = input_example()
        self.good = {
            "images.json": json.dumps({"inputs": rows * 2, "params": params}).encode(),
            "messages.json": json.dumps({"inputs": rows, "params": {"shots": 2, "as_messages": True}}).encode(),
            "features.json": json.dumps({"inputs": [vectors]}).encode(),
        }

    def enter(self, name: str, content: bytes) -> str:
        """Answers a request; what MLflow refuses by itself comes to ``mlflow``."""
        try:
            body = json.loads(content)
            rows = [Row.model_validate(row) for row in body["inputs"]]
            params = body.get("params") or {}
            if not (isinstance(params, dict) and all(isinstance(key, str) for key in params)):
                return "mlflow"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError):
            return "mlflow"
        try:
            answers = self.model.predict(PythonModelContext({}, {}), rows, params)
        except RequestError as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise Wrong(f"status 500: {error.line}") from None
            raise LeverError(error.line) from None
        finite([answer.model_dump() for answer in answers])
        return "answer"


class RetrieverDoor(Door):
    """Takes the files of a registered retriever."""

    name, share = "retrievers", 2

    def prepare(self) -> None:
        """Writes a retriever."""
        self.read_all(retriever_in(self.folder))

    def enter(self, name: str, content: bytes) -> str:
        """Loads the retriever, and puts the good file back."""
        path = self.write(name, content)
        try:
            retriever = load_retriever(self.folder / "retriever")
        finally:
            path.write_bytes(self.good[name])
        if retriever.pool.samples and not math.isfinite(float(np.abs(retriever.pool.features.image_SD).max())):
            raise Wrong("features that are not finite")
        return "retriever"


class StoreDoor(Door):
    """Takes what MLflow holds: artifacts of evaluations and gates, and tags of runs and versions, changed by hand."""

    name, share = "store", 6
    strict = False  # one of the files is a list of tags, which is only here

    def prepare(self) -> None:
        """Registers two versions with their evaluations."""
        mlflow.set_tracking_uri(f"sqlite:///{self.folder / 'mlflow.db'}")
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("store", (self.folder / "artifacts").as_uri()))
        self.client = MlflowClient()
        self.context = Context(Resources(cache_dir=default_cache_dir()))
        self.client.create_registered_model(self.context.registered_name)
        self.runs = {beta: self.registered(beta, count) for beta, count in ((0.12, 30), (0.15, 20))}
        run_id = self.runs[0.12]
        version = self.client.get_model_version_by_alias(self.context.registered_name, beta_alias(0.12))
        self.version, tags = version.version, {"version": version.tags, "run": self.client.get_run(run_id).data.tags}
        files = {
            name: Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_bytes() for name in FILES
        }
        self.good = {**files, "tags.json": json.dumps(tags).encode()}

    def registered(self, kl_beta: float, right: int) -> str:
        """Makes a version with an evaluation in which so many of 40 questions are right; returns its run."""
        answers = np.repeat([1.0, 0.0], (right, 40 - right))
        policies: dict[str, np.ndarray] = {"epoch 1": np.array([answers, answers]), "start": np.array([answers, answers]) * 0.5}
        policies |= {"random": np.zeros((2, 2, 40)), "image-similarity": np.zeros((2, 40))}
        records = evaluation_samples.records_of(policies)
        with mlflow.start_run() as run:
            evaluation = evaluation_samples.evaluation_of(40, kl_beta, run.info.run_id)
            epochs = (EpochMetrics(epoch=1, metrics={"kl": 0.1}),)
            accuracy = tuple(records.table(evaluation.settings.sizes))
            evaluation = evaluation.model_copy(update={"epochs": epochs, "accuracy": accuracy})
            mlflow.log_text(evaluation.model_dump_json(), "evaluation.json")
            records.write(self.folder / "records.parquet")
            mlflow.log_artifact(str(self.folder / "records.parquet"))
            mlflow.log_dict({"start": "rce epoch 4", "threads": "1"}, "facts.json")
            data = load_rl_data(self.write("rl.json", json.dumps(test_fuzz.GOOD["pools"]).encode()))
            mlflow.log_dict(check(data).to_json(), "gate.json")
            mlflow.set_tags({"lever.step": "evaluate", "lever.key": "k", "lever.kl_beta": str(kl_beta)})
        name = self.context.registered_name
        tags = {**describe_version(evaluation, records)[0], "kl_beta": str(kl_beta)}
        version = self.client.create_model_version(name, "s3://nothing/there", tags=tags)
        self.client.set_registered_model_alias(name, beta_alias(kl_beta), version.version)
        return str(run.info.run_id)

    def enter(self, name: str, content: bytes) -> str:
        """Changes an artifact or the tags, lists and promotes the version, compares both evaluations, and undoes the change."""
        change = self.set_tags if name == "tags.json" else partial(self.replaced, name)
        undo = self.good[name]
        if not change(content):
            return "mlflow"
        try:
            with placeholder_run("status"):
                list_versions(self.context)
            if name == "gate.json":
                self.verdict()
            if name == "facts.json":
                read_json(self.runs[0.12], name)
            self.compared()
            with project_run("promote"):
                run_here(promote_step(self.context, 0.12, PromotionSettings()))
        finally:
            while mlflow.active_run():
                mlflow.end_run()
            change(undo)
            for alias in ("champion", "previous-champion"):
                self.client.delete_registered_model_alias(self.context.registered_name, alias)
        return "promoted"

    def verdict(self) -> None:
        """Reads the gate's result as the pipeline does."""
        from lever_mlflow.pipeline.gate import _read_verdict

        result: GateResult = _read_verdict(self.runs[0.12])
        format_table(result)
        finite(result.to_json())

    def compared(self) -> None:
        """Compares both evaluations, as ``compare`` reads them."""
        folder = Path(mlflow.artifacts.download_artifacts(run_id=self.runs[0.12], artifact_path=""))
        evaluation, records = Evaluation.read(folder / "evaluation.json"), EvaluationRecords.read(folder / "records.parquet")
        describe_version(evaluation, records)
        reported(Results(unit="percent", runs=(run_of_evaluation(evaluation),)), **{evaluation.run_id: records})

    def replaced(self, name: str, content: bytes) -> bool:
        """Replaces an artifact of the run where it lies."""
        (self.folder / "artifacts" / self.runs[0.12] / "artifacts" / name).write_bytes(content)
        return True

    def set_tags(self, content: bytes) -> bool:
        """Sets the tags that the content names; returns whether MLflow takes them."""
        try:
            tags = json.loads(content)
            version_tags: Mapping[str, Any] = {**tags["version"]}
            for tag, value in version_tags.items():
                self.client.set_model_version_tag(self.context.registered_name, self.version, tag, str(value))
            for tag, value in {**tags["run"]}.items():
                self.client.set_tag(self.runs[0.12], tag, str(value))
        except Exception:  # MLflow's store refuses names and texts with all kinds of exceptions
            return False
        return True


FILES = ("evaluation.json", "records.parquet", "facts.json", "gate.json")
DOORS: tuple[type[Door], ...] = (
    *(RLDataDoor, ResultsDoor, OkvqaDoor, ImageDoor, CheckpointDoor, ConfigDoor, RequestDoor, RetrieverDoor, StoreDoor),
)
