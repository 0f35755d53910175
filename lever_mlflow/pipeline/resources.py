"""Resolves what a run works with from the names a user gives: data set, VLM and encoder, each with a digest.

``mini`` names the embedded default of each; anything else is a folder or a hub name. All go through the same readers; only
the path differs.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lever_mlflow import mini
from lever_mlflow.data.encoders import Side, check_encoder
from lever_mlflow.data.features import FeatureTable, sample_features
from lever_mlflow.data.hub_dataset import ensure_hub_dataset
from lever_mlflow.data.okvqa import Split, SplitName, describe, read_split, tally
from lever_mlflow.data.pictures import with_pictures
from lever_mlflow.data.samples import Sample
from lever_mlflow.data.stemming import stem_words
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.cache_dir import CACHE_DIR, default_cache_dir
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.model_folders import folder_digest, model_folder
from lever_mlflow.files.names import full_name, readable_name
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.runs.planning import active_plan
from lever_mlflow.settings import AUTO, DataSettings, ResourceSettings
from lever_mlflow.vlm.asking import AnswerCounts, Asker, AskerSettings
from lever_mlflow.vlm.language_model import LanguageModel, VlmName, check_language_model
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import ServerVLM
from lever_mlflow.vlm.server_address import is_server, server_address

__all__ = ["Resources"]

MINI, HUB = mini.NAME, "hf:"
_SPLITS: tuple[SplitName, ...] = ("train", "val")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources(ResourceSettings):
    """Holds data set, VLM and encoder by name; everything is resolved, read or loaded when it is first used.

    Attributes:
        cache_dir: where the embedded data set, copies of hub data sets, features and answers are kept.
        data: how the data set is read.

    Raises:
        ParameterError: a model on a server is named, but the VLM is not the URL of one; or a server's URL cannot be used.
    """

    cache_dir: Path = field(default_factory=default_cache_dir)
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        """Brings the address of a server into its one form, and refuses the name of a model on a server where there is none."""
        if is_server(self.vlm):
            object.__setattr__(self, "vlm", server_address(self.vlm).url)
        elif self.vlm_model != AUTO:
            raise ParameterError(f"vlm_model={self.vlm_model}: vlm={self.vlm} is not the URL of a server; leave vlm_model=auto")

    @cached_property
    def torch_device(self) -> str:
        """Returns ``cpu`` or ``cuda``.

        Raises:
            ParameterError: ``cuda`` was asked for and there is none.
        """
        if self.device != "cpu" and _has_cuda():
            return "cuda"
        if self.device == "cuda":
            raise ParameterError("device=cuda, but PyTorch sees no CUDA device; use device=auto or device=cpu")
        return "cpu"

    # the data set

    @cached_property
    def dataset_root(self) -> Path:
        """Returns the folder of the official files; the embedded data set or a hub data set's copy is written on first use."""
        if self.dataset == MINI:
            return ensure_dataset(self.cache_dir)
        if self.dataset.startswith(HUB):
            name = self.dataset.removeprefix(HUB)
            return ensure_hub_dataset(name, self.data.hf_columns, self.data.hf_splits, self.cache_dir)
        return Path(self.dataset).expanduser()

    @cached_property
    def dataset_digest(self) -> str:
        """Returns the SHA-256 over all usable items of both splits, their images' contents included, 16 hex characters."""
        digest = hashlib.sha256()
        for sample in (*self.train, *self.val):
            item = (sample.question_id, sample.image_id, sample.question, sample.answers, image_digest(sample.image_path))
            stemmed = (sample.stemmed_answers,) if sample.stemmed_answers else ()
            digest.update(json.dumps((*item, *stemmed)).encode())
        return digest.hexdigest()[:16]

    @property
    def train(self) -> list[Sample]:
        """Returns the training items: demonstrations and RL queries."""
        return self._splits["train"].samples

    @property
    def val(self) -> list[Sample]:
        """Returns the evaluation items."""
        return self._splits["val"].samples

    @property
    def left_out(self) -> dict[SplitName, int]:
        """Counts how many questions of each split ``on_bad_item=skip`` left out."""
        return {name: split.left_out for name, split in self._splits.items()}

    @property
    def skipped_items(self) -> str:
        """Says what ``on_bad_item=skip`` left out, by kind, such as ``train: 2 with a missing image``."""
        return "; ".join(f"{name}: {tally(split.bad)}" for name, split in self._splits.items() if split.bad)

    @cached_property
    def _splits(self) -> dict[SplitName, Split]:
        """Reads both splits, so that one message tells everything that is wrong with the data set."""
        root, max_aspect = self.dataset_root, self.language_model.max_aspect
        written_here = self.dataset == MINI or self.dataset.startswith(HUB)
        remedy = f"; or delete {root}: it is written again" if written_here else ""
        memo_dir = self.cache_dir / "images"
        try:
            splits = {
                name: read_split(root, name, memo_dir=memo_dir, max_aspect=max_aspect, scoring=self.data.scoring)
                for name in _SPLITS
            }
        except DataError as error:
            raise DataError(f"{error}{remedy}") from None
        bad = {name: split.bad for name, split in splits.items() if split.bad}
        if bad and self.data.on_bad_item == "stop":
            problems = ". ".join(f"{name}: {describe(items)}" for name, items in bad.items())
            raise DataError(
                f"{self.dataset}: items that cannot be used. {problems}. "
                f"Mend them, or leave them out with on_bad_item=skip{remedy}"
            )
        for name, items in bad.items():
            log.warning("%s: %d %s questions are left out: %s", self.dataset, splits[name].left_out, name, tally(items))
            if not splits[name].samples:
                raise DataError(f"{self.dataset}: no {name} item can be used. {name}: {describe(items)}")
        numbered = with_pictures([split.samples for split in splits.values()])
        return {name: split._replace(samples=samples) for (name, split), samples in zip(splits.items(), numbered, strict=True)}

    # the encoder

    @cached_property
    def encoder_folder(self) -> Path:
        """Returns the encoder's local folder."""
        return mini.CLIP_PATH if self.encoder == MINI else model_folder(self.encoder)

    @cached_property
    def encoder_digest(self) -> str:
        """Names the encoder's files, 16 hex characters."""
        return folder_digest(self.encoder_folder, self.cache_dir / "digests")

    @cached_property
    def encoder_sides(self) -> tuple[Side, ...]:
        """Returns what the encoder encodes: images, texts or both.

        Raises:
            DataError: its folder holds no encoder that can be used.
        """
        return check_encoder(self.encoder_folder)

    def features(self, split: SplitName) -> FeatureTable:
        """Returns the features of a split, computed once per content. Once they are here, the cache may lose them."""
        if split not in self._features:
            samples, encoder = self._splits[split].samples, (self.encoder_folder, self.encoder_digest)
            self._features[split] = sample_features(samples, *encoder, self.cache_dir, self.torch_device)
        return self._features[split]

    @cached_property
    def _features(self) -> dict[SplitName, FeatureTable]:
        """Returns the features that are here already, by split."""
        return {}

    # the VLM

    @property
    def language_model(self) -> LanguageModel:
        """Returns the VLM, whose weights are loaded when it first has to answer."""
        return self._asker.language_model

    @property
    def profile_digest(self) -> str:
        """Names how the VLM is asked and how its answers are scored, 16 hex characters.

        With the default way of scoring it is the digest of the prompt profile.
        """
        digest = self.language_model.profile.digest
        if self.data.scoring == DataSettings.scoring:
            return digest
        return hashlib.sha256(json.dumps([digest, self.data.scoring]).encode()).hexdigest()[:16]

    def answer(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """Asks the VLM, as ``Asker.answer``."""
        return self._asker.answer(prompts, description)

    def score(self, prompts: Sequence[Prompt], description: str) -> list[float]:
        """Asks the VLM how probable right answers are, as ``Asker.score``."""
        return self._asker.score(prompts, description)

    def try_longest_prompt(self, shots: int) -> None:
        """Asks a server for the answer to one prompt of so many demonstrations, unless it is known or a longer one was tried.

        So a server whose limits are too small for the prompts of the work is found out before the work begins. A local VLM, and
        any VLM while a plan is made, is asked nothing.

        Raises:
            DataError, ServerError: as ``answer``; the message says what to set on the server.
        """
        if is_server(self.vlm) and shots > self._tried_shots and active_plan() is None:
            object.__setattr__(self, "_tried_shots", shots)
            self.answer([Prompt(tuple(self.train[:shots]), self.val[0])], "longest prompt")

    @cached_property
    def _tried_shots(self) -> int:
        """Returns the most demonstrations of a prompt that was tried; -1 before the first."""
        return -1

    @property
    def answer_counts(self) -> AnswerCounts:
        """Returns how much the VLM has answered in this process, and how long that took."""
        return self._asker.answer_counts

    @cached_property
    def _asker(self) -> Asker:
        name = str(mini.VLM_PATH) if self.vlm == MINI else self.vlm
        profile = MINI if self.vlm == MINI and self.profile == AUTO else self.profile
        local = (self.torch_device, self.batch_tokens, self.vlm_dtype)
        vlm = VlmName(name, self.vlm_model, profile, *local, self.vlm_timeout, self.max_poor_answers)
        return Asker(AskerSettings(vlm, self.cache_dir, self.cache))

    # all of them

    def check(self) -> None:
        """Reads both splits and resolves both models, asking a server for its own: a wrong name ends the run before any work.

        Raises:
            DataError, ParameterError, ServerError: one of the names leads to nothing usable, or options do not go together.
        """
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.cache_dir}: cannot be the cache folder ({error}); set {CACHE_DIR}") from None
        hub_settings = (self.data.hf_columns, self.data.hf_splits)
        if not self.dataset.startswith(HUB) and hub_settings != (DataSettings().hf_columns, DataSettings().hf_splits):
            raise ParameterError(
                f"dataset={self.dataset} takes no hf_columns or hf_splits; give dataset=hf:NAME, or leave them"
            )
        if self.data.scoring == "stem":
            stem_words("")
        _ = self.encoder_sides
        check_language_model(self.language_model)
        _ = self.dataset_digest

    @property
    def label(self) -> str:
        """Returns data set and VLM in a form fit for the names of registered models: ``mini-mini`` for the embedded ones.

        All others have a digest of their full names at the end, as several may look alike: that of a folder is its path, and
        that of a model on a server its name there.
        """
        names = self._full_names
        readable = "-".join(map(readable_name, names))
        if self.dataset == self.vlm == MINI:
            return readable
        return f"{readable}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}"

    @property
    def _full_names(self) -> tuple[str, str]:
        """Returns the names of data set and VLM, which no other ones have."""
        hub, of_dataset = self.dataset.startswith(HUB), self.dataset.removeprefix(HUB)
        dataset = MINI if self.dataset == MINI else f"{HUB if hub else ''}{full_name(of_dataset)}"
        if self.vlm == MINI:
            return dataset, MINI
        return dataset, f"server:/{self._served_name}" if is_server(self.vlm) else full_name(self.vlm)

    @property
    def _served_name(self) -> str:
        """Returns what the VLM is called on its server."""
        if self.vlm_model != AUTO:
            return self.vlm_model
        model = self.language_model
        assert isinstance(model, ServerVLM), "the URL of a server opens a model on that server"
        return model.model


def _has_cuda() -> bool:
    """Says whether PyTorch sees a CUDA device; PyTorch, whose import takes over a second, is asked where there is a driver.

    Without NVIDIA's library, which PyTorch loads itself, and AMD's device file, it sees none.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not Path("/dev/kfd").exists():
            return False
    import torch

    return torch.cuda.is_available()
