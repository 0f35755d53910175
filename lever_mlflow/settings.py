"""The settings of each stage with their defaults, and the choices that they may hold; nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

__all__ = [
    "GRPO_PRESETS",
    "PRESET_SETTINGS",
    "REWARD_MODES",
    "CacheMode",
    "DataSettings",
    "EvalSettings",
    "Fusion",
    "GateSettings",
    "GrpoSettings",
    "Language",
    "LrScheduler",
    "NormalizeRewards",
    "PoolSampler",
    "PromotionSettings",
    "RceSettings",
    "RewardMode",
    "RolloutSettings",
    "ScaleRewards",
    "ServingSettings",
    "format_beta",
    "format_number",
]


Fusion = Literal["mean", "concat"]  # of image and text features
Language = Literal["en", "zh"]  # of a report
PoolSampler = Literal["random", "image-similarity", "text-similarity", "mixed"]
RewardMode = Literal["hard_plus_soft", "hard_only", "soft_only", "separated", "hard_plus_gtprob"]
REWARD_MODES: tuple[RewardMode, ...] = get_args(RewardMode)
NormalizeRewards = Literal["z-score", "rank", "none"]
ScaleRewards = Literal["group", "batch", "none"]
LrScheduler = Literal["constant", "linear", "cosine"]
CacheMode = Literal["on", "read", "off"]


def format_number(value: float) -> str:
    """Writes a number in its shortest form, with at most 12 significant digits."""
    return f"{value:.12g}"


def format_beta(kl_beta: float) -> str:
    """Writes a KL weight the one way in which it stands in aliases, tags, commands and reports."""
    return format_number(kl_beta)


@dataclass(frozen=True)
class DataSettings:
    """How a data set is read: what bad items do, and which columns and splits of a hub data set are taken.

    ``on_bad_item`` is ``stop``, or ``skip`` to leave them out; ``hf_columns`` names the columns that are called otherwise
    than here: ``question``, ``answers``, ``image``, ``question_id``, ``image_id``; ``hf_splits`` are training and evaluation.
    """

    on_bad_item: Literal["stop", "skip"] = "stop"
    hf_columns: Mapping[str, str] = field(default_factory=dict)
    hf_splits: tuple[str, ...] = ("train", "validation")


@dataclass(frozen=True)
class RolloutSettings:
    """How trials are recorded: the candidate pool, and pointers per query by generator, of which 0 turns one off.

    Equal pointers are kept once. ``retrieval_per_feature`` pointers are taken by each of fused, image and text feature.
    Queries without a positive trial get up to ``mine_positives`` more. With ``gt_prob`` each trial says how probable the right
    answers were.
    """

    n_queries: int = 600
    shots: int = 2
    pool_size: int = 64
    pool_sampler: PoolSampler = "random"
    beam_width: int = 5
    temperatures: tuple[float, ...] = (1.0, 1.3)
    samples_per_temperature: int = 2
    retrieval_per_feature: int = 1
    random_pointers: int = 2
    mine_positives: int = 0
    gt_prob: bool = False


@dataclass(frozen=True)
class RceSettings:
    """RCE training. ``temperature_*`` is the reward temperature, linear over all steps; a ``top_k`` of 0 keeps whole groups.

    ``early_stopping`` epochs without a higher expected reward end the training, 0 never; ``n_layers`` to ``state_update``
    shape the selector.
    """

    epochs: int = 5
    lr: float = 1e-4
    lr_scheduler: LrScheduler = "constant"
    batch_size: int = 1
    temperature_start: float = 2.0
    temperature_end: float = 0.5
    normalize_rewards: NormalizeRewards = "z-score"
    top_k: int = 0
    dropout: float = 0.0
    grad_clip: float = 1.0
    val_share: float = 0.2
    early_stopping: int = 0
    n_layers: int = 1
    n_heads: int = 1
    fusion: Fusion = "mean"
    state_update: bool = False


@dataclass(frozen=True)
class GrpoSettings:
    """GRPO training from a start checkpoint, which is also the reference policy; ``kl_beta`` is the KL weight.

    The ratio to the start is clipped to 1 - ``epsilon`` and 1 + ``epsilon_high``, of which 0 is ``epsilon``; as the start never
    moves on, this bounds how far training goes in all. ``top_k`` and ``early_stopping`` as for RCE. ``lr``, ``batch_size``,
    the clip range and ``freeze_backbone`` were chosen by experiment (docs/experiments.md).
    """

    kl_beta: float = 0.15
    adaptive_beta: bool = False
    epochs: int = 3
    lr: float = 2e-4
    lr_scheduler: LrScheduler = "constant"
    batch_size: int = 8
    epsilon: float = 0.9
    epsilon_high: float = 5.0
    scale_rewards: ScaleRewards = "group"
    mask_zero_std_groups: bool = False
    top_k: int = 0
    entropy_coef: float = 0.0
    freeze_backbone: bool = False
    grad_clip: float = 1.0
    val_share: float = 0.2
    early_stopping: int = 0


GRPO_PRESETS: Mapping[str, GrpoSettings] = {
    "default": GrpoSettings(),
    "predecessor": GrpoSettings(lr=5e-6, batch_size=1, epsilon=0.2, epsilon_high=0.0, freeze_backbone=True),
}
PRESET_SETTINGS = tuple(  # what presets differ in
    setting.name for setting in fields(GrpoSettings) if len({getattr(p, setting.name) for p in GRPO_PRESETS.values()}) > 1
)


@dataclass(frozen=True)
class EvalSettings:
    """Evaluation: nested prefixes (``sizes``) of one seeded order of questions; the last ones choose the epoch.

    ``random_draws``: of the random baseline; ``n_oracle``: questions on which every candidate is tried alone, 0 for none.
    """

    sizes: tuple[int, ...] = (100, 200, 400, 800)
    shots: tuple[int, ...] = (1, 2, 3, 4)
    n_selection: int = 400
    pool_size: int = 64
    pool_sampler: PoolSampler = RolloutSettings.pool_sampler
    random_draws: int = 3
    n_oracle: int = 50


@dataclass(frozen=True)
class PromotionSettings:
    """When a version becomes champion: gaining ``min_gain`` points over the present one; with ``force``, whatever is known."""

    min_gain: float = 0.0
    force: bool = False


@dataclass(frozen=True)
class GateSettings:
    """The data gate: ``thresholds`` instead of the suites' own, the most shots that evaluation will use, what critical data do.

    ``on_bad_data`` is ``stop``, or ``warn`` to go on; whatever is trained then says so.
    """

    thresholds: Mapping[str, float | str] = field(default_factory=dict)
    max_shots: int = max(EvalSettings.shots)
    on_bad_data: Literal["stop", "warn"] = "stop"


@dataclass(frozen=True)
class ServingSettings:
    """A served retriever: ``shots`` and ``as_messages`` where a request gives none, and the most that a request may hold.

    ``max_pool_image_bytes``: up to this, the files of the pool's images are part of the model.
    """

    shots: int = RolloutSettings.shots
    as_messages: bool = False
    max_rows: int = 10_000
    max_question_characters: int = 2_000
    max_image_bytes: int = 10 * 2**20
    max_image_pixels: int = 16_000_000
    max_pool_image_bytes: int = 64 * 2**20
