"""Offers the stages of the experiment as functions for scripts and notebooks, which need no MLflow run.

``Resources`` names data set, VLM and encoder once; every function here takes it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lever_mlflow.pipeline.checkpoints import RANDOM_INIT, initial_selector
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import record_groups
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.retriever import Retriever, RetrieverSettings, load_retriever, save_retriever
from lever_mlflow.settings import EvalSettings, Order, PoolSampler, RolloutSettings
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import RLData, save_rl_data
from lever_mlflow.vlm.prompt import Prompt, clean_generation

__all__ = ["ask", "make_retriever", "record_rl_data"]


def record_rl_data(
    path: str | Path,
    resources: Resources,
    settings: RolloutSettings | None = None,
    *,
    selector: PointerSelector | None = None,
    round_number: int = 1,
    seed: int = 0,
) -> RLData:
    """Records trials of a selector as the rollout step does, writes them to a file, and reads them from there.

    Args:
        path: the new file; an existing one is replaced.
        resources: data set, VLM and encoder.
        settings: number of queries, pools and generators; the defaults if None.
        selector: the policy that beam search and sampling draw from; an untrained one if None.
        round_number: number of the round of GRPO, from 1; each round has other queries.
        seed: seed of the queries, of all random draws and of the untrained selector.

    Raises:
        DataError: data set or models cannot be used.
        ParameterError: the settings do not fit together or the data set.
    """
    context = Context(resources, seed=seed)
    policy = initial_selector(context, RANDOM_INIT) if selector is None else copy.deepcopy(selector).cpu().eval()
    groups, meta = record_groups(context, settings or RolloutSettings(), policy, round_number)
    save_rl_data(path, groups, meta)
    return load_rl_data(path)


def ask(resources: Resources, prompts: Sequence[Prompt]) -> list[str]:
    """Asks the VLM and returns its answer to each prompt, in order, without what it has generated after the answer.

    Prompts that were answered before cost nothing.

    Raises:
        DataError: data set or models cannot be used.
        ServerError: the VLM is on a server, which does not answer.
    """
    return [clean_generation(text) for text in resources.answer(prompts, description="ask")]


def make_retriever(
    folder: str | Path,
    resources: Resources,
    selector: PointerSelector,
    *,
    pool_sampler: PoolSampler = EvalSettings.pool_sampler,
    pool_size: int = EvalSettings.pool_size,
    seed: int = 0,
    order: Order = EvalSettings.order,
) -> Retriever:
    """Writes the retriever of a selector into a folder, as it is registered, and loads it from there.

    ``load_retriever`` loads it again.

    Args:
        folder: a new or empty folder.
        resources: data set, VLM and encoder; the training items become the pool.
        selector: the selector.
        pool_sampler: the way in which the candidates of a question are drawn.
        pool_size: number of candidates of a question.
        seed: seed of candidates that are drawn at random.
        order: whether the first pick stands first in the prompt, or last.

    Raises:
        DataError: data set or encoder cannot be used.
        FileExistsError: the folder holds a retriever already.
    """
    folder, encoder = Path(folder), Path(resources.encoder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    settings = RetrieverSettings(
        checkpoint_digest=selector_digest(selector),
        dataset_digest=resources.dataset_digest,
        encoder=str(encoder.resolve()) if encoder.is_dir() else resources.encoder,
        encoder_digest=resources.encoder_digest,
        profile=resources.language_model.profile,
        pool_sampler=pool_sampler,
        pool_size=pool_size,
        seed=seed,
        order=order,
    )
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "checkpoint"
        save_selector(checkpoint, selector, {})
        save_retriever(folder, settings, checkpoint, resources.train, resources.features("train"))
    return load_retriever(folder)
