"""What a run works with, resolved from the names a user gives: data set, VLM and encoder, each with a digest.

``mini`` names the embedded default of each; anything else is a folder or a hub name. All go through the same readers; only
the path differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from lever_mlflow import distributed, mini
from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.data.features import FeatureTable, sample_features
from lever_mlflow.data.hub_dataset import ensure_hub_dataset
from lever_mlflow.data.okvqa import Split, SplitName, describe, read_split, tally
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.model_folders import check_model, folder_digest, model_folder
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.settings import CacheMode, DataSettings, EvalSettings, PoolSampler
from lever_mlflow.vlm.answer_cache import AnswerCache, cached_answers
from lever_mlflow.vlm.local import LocalVLM
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import AUTO, ServerVLM, is_server

__all__ = ["MINI", "Resources", "default_cache_dir"]

MINI, HUB = mini.NAME, "hf:"
_Ask = Literal["generate", "score"]

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$LEVER_MLFLOW_CACHE``, or ``~/.cache/lever-mlflow``: embedded data set, features and answers, safe to delete."""
    return Path(os.environ.get("LEVER_MLFLOW_CACHE") or Path.home() / ".cache" / "lever-mlflow")


@dataclass(frozen=True)
class Resources:
    """Data set, VLM and encoder by name; everything is resolved, read or loaded when first used.

    Attributes:
        dataset: ``mini``, the folder of the official OK-VQA files, or ``hf:`` and a hub data set's name or folder.
        vlm: ``mini``, a folder or a hub name of a Qwen2.5-VL, or the URL of an OpenAI-compatible server.
        vlm_model: the model's name on that server; ``auto`` is the only one it has.
        encoder: ``mini``, a folder or a hub name of a CLIP model.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_tokens: of a VLM batch; 0 for what suits the device.
        cache: whether VLM answers are looked up and stored.
        cache_dir: where the embedded data set, copies of hub data sets, features and answers are kept.
        data: how the data set is read.
    """

    dataset: str = MINI
    vlm: str = MINI
    vlm_model: str = AUTO
    encoder: str = MINI
    device: str = "auto"
    batch_tokens: int = 0
    cache: CacheMode = "on"
    cache_dir: Path = Path()
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        """Refuses a model's name where there is no server (ParameterError)."""
        if self.vlm_model != AUTO and not is_server(self.vlm):
            raise ParameterError(f"vlm_model={self.vlm_model}: vlm={self.vlm} is not the URL of a server; leave vlm_model=auto")

    @cached_property
    def torch_device(self) -> str:
        """``cpu`` or ``cuda``.

        Raises:
            ParameterError: ``cuda`` was asked for and there is none.
        """
        import torch

        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ParameterError("device=cuda, but PyTorch sees no CUDA device; use device=auto or device=cpu")
        return "cuda" if available and self.device != "cpu" else "cpu"

    @cached_property
    def dataset_root(self) -> Path:
        """Folder of the official files; the embedded data set or a hub data set's copy is written on first use."""
        if self.dataset == MINI:
            return ensure_dataset(self.cache_dir)
        if self.dataset.startswith(HUB):
            name = self.dataset.removeprefix(HUB)
            return ensure_hub_dataset(name, self.data.hf_columns, self.data.hf_splits, self.cache_dir)
        return Path(self.dataset).expanduser()

    @cached_property
    def dataset_digest(self) -> str:
        """SHA-256 over all usable items of both splits, their images' contents included, 16 hex characters."""
        digest = hashlib.sha256()
        for sample in (*self.train, *self.val):
            item = (sample.question_id, sample.image_id, sample.question, sample.answers, image_digest(sample.image_path))
            digest.update(json.dumps(item).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def train(self) -> list[Sample]:
        """Training items: the candidate pool and the RL queries."""
        return self._splits["train"].samples

    @cached_property
    def val(self) -> list[Sample]:
        """Evaluation items."""
        return self._splits["val"].samples

    @cached_property
    def left_out(self) -> dict[SplitName, int]:
        """How many questions of each split ``on_bad_item=skip`` left out."""
        return {name: split.left_out for name, split in self._splits.items()}

    @cached_property
    def skipped_items(self) -> str:
        """What ``on_bad_item=skip`` left out, by kind, such as ``train: 2 with a missing image``; empty where nothing."""
        return "; ".join(f"{name}: {tally(split.bad)}" for name, split in self._splits.items() if split.bad)

    @cached_property
    def _splits(self) -> dict[SplitName, Split]:
        """Both splits, so that one message tells all that is wrong with the data set."""
        root, max_aspect = self.dataset_root, self.language_model.profile.max_aspect
        written_again = f"; or delete {root}: it is written again" if self.dataset == MINI else ""
        names: tuple[SplitName, ...] = ("train", "val")
        try:
            splits = {name: read_split(root, name, memo_dir=self.cache_dir / "images", max_aspect=max_aspect) for name in names}
        except DataError as error:
            raise DataError(f"{error}{written_again}") from None
        bad = {name: split.bad for name, split in splits.items() if split.bad}
        if bad and self.data.on_bad_item == "stop":
            told = ". ".join(f"{name}: {describe(items)}" for name, items in bad.items())
            raise DataError(
                f"{self.dataset}: items that cannot be used. {told}. "
                f"Mend them, or leave them out with on_bad_item=skip{written_again}"
            )
        for name, items in bad.items():
            log.warning("%s: %d %s questions are left out: %s", self.dataset, splits[name].left_out, name, tally(items))
            if not splits[name].samples:
                raise DataError(f"{self.dataset}: no {name} item can be used. {name}: {describe(items)}")
        return splits

    @cached_property
    def encoder_folder(self) -> Path:
        """The CLIP model's local folder."""
        return mini.CLIP_PATH if self.encoder == MINI else model_folder(self.encoder)

    @cached_property
    def encoder_digest(self) -> str:
        """Names the encoder's files, 16 hex characters."""
        return folder_digest(self.encoder_folder, self.cache_dir / "digests")

    @cached_property
    def served(self) -> ServerVLM | None:
        """The VLM where it is on a server."""
        return ServerVLM(self.vlm, self.vlm_model) if is_server(self.vlm) else None

    @cached_property
    def language_model(self) -> LocalVLM | ServerVLM:
        """The VLM; its weights are loaded when it first has to generate."""
        if self.served is not None:
            return self.served
        profile = "mini" if self.vlm == MINI else "qwen2.5-vl"
        folder = mini.VLM_PATH if self.vlm == MINI else model_folder(self.vlm)
        digest = folder_digest(folder, self.cache_dir / "digests")
        return LocalVLM(folder, digest, profile, self.torch_device, self.batch_tokens)

    def features(self, split: Literal["train", "val"]) -> FeatureTable:
        """CLIP features of one split, computed once per content."""
        samples = self.train if split == "train" else self.val
        return sample_features(samples, self.encoder_folder, self.encoder_digest, self.cache_dir, self.torch_device)

    def pools(
        self, queries: Sequence[Sample], size: int, seed: int, sampler: PoolSampler = EvalSettings.pool_sampler
    ) -> np.ndarray:
        """Candidate pool of each evaluation question, train indices [Q, N]."""
        return candidate_pools(queries, self.train, sampler, size, seed, self.features("val"), self.features("train"))

    def answer(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """Raw generations for prompts, in their order; equal prompts and prompts answered before cost nothing."""
        return self._asked("generate", prompts, description)

    def score(self, prompts: Sequence[Prompt], description: str) -> list[float]:
        """``LocalVLM.score`` of prompts, in their order, at the cost of ``answer``.

        Raises:
            ParameterError: the VLM is on a server, which does not tell.
        """
        if not isinstance(self.language_model, LocalVLM):
            raise ParameterError(
                f"gt_prob: {self.vlm} does not tell how probable answers are; use a local VLM or gt_prob=false"
            )
        return [float(text) for text in self._asked("score", prompts, description)]

    def _asked(self, what: _Ask, prompts: Sequence[Prompt], description: str) -> list[str]:
        with self._answer_cache() as cache:
            return cached_answers(prompts, self._key(what), partial(self._together, what), cache, description).texts

    def _key(self, what: _Ask) -> Callable[[Prompt], str]:
        model = self.language_model
        return model.score_key if what == "score" and isinstance(model, LocalVLM) else model.key

    def _answer_cache(self) -> AnswerCache:
        """The machine's own file, as SQLite does not belong on a network share: that of the first one, or of its number."""
        machine = int(os.environ.get("GROUP_RANK", "0"))  # as torch.distributed's launchers number machines
        return AnswerCache(self.cache_dir / (f"answers-{machine}.sqlite" if machine else "answers.sqlite"), self.cache)

    def _together(self, what: _Ask, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Batches of (position, text), made by all processes of the run."""
        if not prompts:
            return
        processes = distributed.join(self.torch_device)
        distributed.call_followers(processes, _ask_along, replace(self), what, prompts)
        own: set[int] = set()
        for batch in self._own_share(what, prompts):
            own.update(position for position, _ in batch)
            yield batch
        yield [item for item in distributed.collect(processes, []) if item[0] not in own]

    def _own_share(self, what: _Ask, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        positions = distributed.share(distributed.join(self.torch_device), np.arange(len(prompts))).tolist()
        for batch in getattr(self.language_model, what)([prompts[i] for i in positions]):
            yield [(positions[i], text) for i, text in batch]

    def check(self) -> None:
        """Reads both splits and resolves both models, asking a server for its own: a wrong name ends the run before any work.

        Raises:
            DataError, ParameterError, ServerError: one of the names leads to nothing usable, or options do not go together.
        """
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.cache_dir}: cannot be the cache folder ({error}); set LEVER_MLFLOW_CACHE") from None
        if not self.dataset.startswith(HUB) and replace(self.data, on_bad_item="stop") != DataSettings():
            raise ParameterError(
                f"dataset={self.dataset} takes no hf_columns or hf_splits; give dataset=hf:NAME, or leave them"
            )
        check_model(self.encoder_folder, "clip")
        if isinstance(model := self.language_model, ServerVLM):
            _ = model.card
        else:
            check_model(model.folder, "qwen2_5_vl")
        _ = self.dataset_digest

    @property
    def label(self) -> str:
        """Data set and VLM in a form fit for the names of registered models, such as ``mini-mini``."""
        names = (self.dataset, self.vlm_name)
        return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name).strip("-").lower() for name in names)

    @property
    def vlm_name(self) -> str:
        """What the VLM is called: on a server, its name there."""
        if self.served is None:
            return self.vlm
        return self.served.model if self.vlm_model == AUTO else self.vlm_model


def _ask_along(resources: Resources, what: _Ask, prompts: Sequence[Prompt]) -> None:
    """The part of the answers or scores that a following process has; stored as they come, then handed to the leader."""
    own = _kept(resources)
    key, found = own._key(what), list[tuple[int, str]]()
    with own._answer_cache() as cache:
        for batch in own._own_share(what, prompts):
            cache.put([(key(prompts[position]), text) for position, text in batch])
            found += batch
    distributed.collect(distributed.join(own.torch_device), found)


def _kept(resources: Resources) -> Resources:
    """The object of the last call if it has the same names, so that a following process loads the VLM once."""
    if resources not in _followed:
        _followed[:] = [resources]
    return _followed[0]


_followed: list[Resources] = []
