"""Declares every setting once: its type, its default, its bounds and its help text.

The command line (``lever_mlflow.cli``) generates its options from these declarations, and a test holds ``MLproject`` to them.
Nothing but the standard library is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

__all__ = [
    "AUTO",
    "NONE",
    "REWARD_MODES",
    "CacheMode",
    "CommandSettings",
    "ComparisonInputs",
    "DataSettings",
    "Device",
    "EvalSettings",
    "EvaluationInputs",
    "ExperimentSettings",
    "Fusion",
    "GateEngine",
    "GateSettings",
    "GrpoInputs",
    "GrpoSettings",
    "ItemOrder",
    "KlReference",
    "Language",
    "LrScheduler",
    "MergeInputs",
    "MissingStepSettings",
    "NormalizeRewards",
    "OnBadData",
    "OnBadItem",
    "Option",
    "Order",
    "OutputSettings",
    "PoolSampler",
    "Preset",
    "PresetInputs",
    "PromotionSettings",
    "RceSettings",
    "Register",
    "ResourceSettings",
    "RewardMode",
    "RlDataSettings",
    "RolloutInputs",
    "RolloutSettings",
    "RoundSettings",
    "ScaleRewards",
    "Scoring",
    "ServingSettings",
    "ShardInputs",
    "SimilarityEvidence",
    "SweepInputs",
    "TrainingInputs",
    "ValidationInputs",
    "VlmDtype",
    "as_text",
    "declaration",
    "default_of",
    "format_beta",
    "format_number",
    "preset_names",
    "preset_of",
]

S = TypeVar("S")
AUTO, NONE = "auto", "none"  # an input that the command finds itself; an input that is left out

CacheMode = Literal["on", "read", "off"]
Device = Literal["auto", "cpu", "cuda"]
Fusion = Literal["mean", "concat", "image", "text"]
GateEngine = Literal["pandas", "sql"]
ItemOrder = Literal["auto", "file", "question_id"]
KlReference = Literal["start", "round"]
Language = Literal["en", "zh"]
LrScheduler = Literal["constant", "linear", "cosine"]
NormalizeRewards = Literal["z-score", "rank", "none"]
OnBadData = Literal["stop", "warn"]
OnBadItem = Literal["stop", "skip"]
Order = Literal["similar-first", "similar-last"]
PoolSampler = Literal["random", "image-similarity", "text-similarity", "fused-similarity", "mixed", "fixed"]
Preset = Literal["default", "predecessor"]
Register = Literal["auto", "always", "never"]
RewardMode = Literal[
    "hard_plus_soft",
    "hard_only",
    "soft_only",
    "separated",
    "separated_gtprob",
    "hard_plus_gtprob",
    "hard_plus_gtprob_plus_rel",
]
REWARD_MODES: tuple[RewardMode, ...] = get_args(RewardMode)
ScaleRewards = Literal["group", "batch", "none"]
Scoring = Literal["raw", "stem", "plain"]
SimilarityEvidence = Literal["better", "not-worse"]
VlmDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Option:
    """Describes what a setting means and which values it takes, beside its type and default.

    Attributes:
        help: whole sentences that are understood alone; the first one is the comment in ``MLproject``.
        at_least: the smallest number that is allowed.
        above: a number that every allowed one must exceed.
        below: a number that every allowed one must stay under.
        least_items: how many numbers a list must hold.
        ascending: whether a list is sorted.
        short: a letter that switches on a setting that is true or false; ``v`` lets ``-v`` stand for ``--name true``.
        example: a ``name=value`` pair for the error message of a setting that takes such pairs.
        predecessor: the value of the preset ``predecessor``, where it differs from the default.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    least_items: int = 1
    ascending: bool = False
    short: str = ""
    example: str = ""
    predecessor: Any = None


def option(default: Any, **description: Any) -> Any:
    """Declares a setting: a dataclass field with this default that carries an ``Option`` of the other arguments."""
    return _field(default, Option(**description))


def like(settings: type[Any], name: str, default: Any = MISSING, **changes: Any) -> Any:
    """Declares a setting as another class declares it, except for a new default and changes of its ``Option``."""
    original = settings.__dataclass_fields__[name]
    return _field(default_of(original) if default is MISSING else default, replace(declaration(original), **changes))


def declaration(setting: Field[Any]) -> Option:
    """Returns the ``Option`` that a field of a settings class carries."""
    described: Option = setting.metadata["option"]
    return described


def default_of(setting: Field[Any]) -> Any:
    """Returns the default of a field of a settings class."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def preset_names(settings: type[Any]) -> tuple[str, ...]:
    """Returns the names of the settings of a class in which presets differ."""
    return tuple(setting.name for setting in fields(settings) if declaration(setting).predecessor is not None)


def preset_of(settings: type[S], preset: Preset, **changes: Any) -> S:
    """Returns settings of a class as a preset has them, except for the changes."""
    values = {}
    if preset == "predecessor":
        declared = settings.__dataclass_fields__  # type: ignore[attr-defined]
        values = {name: declaration(declared[name]).predecessor for name in preset_names(settings)}
    return settings(**{**values, **changes})


def _field(default: Any, described: Option) -> Any:
    metadata = {"option": described}
    if isinstance(default, dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def format_number(value: float) -> str:
    """Returns a number as text in its shortest form, with at most 12 significant digits."""
    return f"{value:.12g}"


def as_text(value: Any) -> str:
    """Writes a value as the text of a tag or parameter: numbers in their shortest form, lists and mappings with commas."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={as_text(item)}" for name, item in value.items()) or NONE
    return (",".join(map(as_text, value)) or NONE) if isinstance(value, list | tuple) else str(value)


def format_beta(kl_beta: float) -> str:
    """Returns a KL weight as text, such as ``0.12``: the one way to write a beta in aliases, tags, commands and reports."""
    return format_number(kl_beta)


@dataclass(frozen=True)
class CommandSettings:
    """Says how a command is run; none of this decides its result."""

    config: str = option(
        NONE,
        help="Configuration file in YAML to take options from; none takes none. "
        "It holds the names of options with their values, nested by step. An option of the command itself takes precedence.",
    )
    plan: bool = option(
        False,
        help="Whether to say what would run, what would be reused and how long that takes, and to run nothing.",
    )
    rerun: bool = option(
        False,
        help="Whether to run all steps of the command anew, even where finished runs with the same inputs and settings exist.",
    )


@dataclass(frozen=True)
class MissingStepSettings:
    """Says what a command does that only looks at results, where a step has not run yet."""

    run_missing: bool = option(
        False, help="Whether to run the steps first that are still missing; otherwise the command names them and ends."
    )


@dataclass(frozen=True)
class ResourceSettings:
    """Names the data set, the VLM and the encoder that a run works with, and says how the models are run."""

    dataset: str = option(
        "mini", help="Data set: mini (the embedded one), a folder of the official OK-VQA files, or hf:NAME of a hub data set."
    )
    vlm: str = option(
        "mini",
        help="Vision-language model: mini (the embedded one), a folder or hub name of any family that transformers knows as "
        "image-text-to-text, or a server's URL. "
        "The server must be compatible with OpenAI's interface.",
    )
    vlm_model: str = option(
        AUTO, help="Name of the model on the server that vlm gives the URL of; auto takes the only model that it has."
    )
    vlm_timeout: int = option(300, at_least=1, help="Longest time in seconds that an answer of a VLM server may take.")
    max_poor_answers: float = option(
        0.8,
        at_least=0,
        help="Largest share of the answers of a VLM server that may be empty, refused, cut at the limit of tokens or nothing "
        "but reasoning. Above it the run ends, as soon as there are 20 answers; 1 never ends it.",
    )
    encoder: str = option(
        "mini",
        help="Model for features: mini (the embedded CLIP), or a folder or hub name of CLIP, SigLIP and the like. An encoder "
        "of images or of texts alone needs fusion and pool_sampler that go with it.",
    )
    device: Device = option(AUTO, help="Device that the models run on; auto takes a GPU when there is one.")
    profile: str = option(
        AUTO,
        help="Prompt profile: auto for that of the model's family, the name of another one, or a JSON file of texts, image "
        "sizes and generation settings (docs/real-data.md).",
    )
    vlm_dtype: VlmDtype = option(
        AUTO, help="Type of the weights of a local VLM; auto is bfloat16 on a GPU and float32 on a CPU."
    )
    batch_tokens: int = option(
        0, at_least=0, help="Number of tokens in a batch of the VLM; 0 means 8192 on a CPU and 32768 on a GPU."
    )
    cache: CacheMode = option(
        "on", help="Use of the cache of VLM answers: on looks up and adds, read only looks up, off asks for every answer anew."
    )


@dataclass(frozen=True)
class DataSettings:
    """Says how a data set is read, and how answers to its questions are scored."""

    on_bad_item: OnBadItem = option(
        "stop", help="What to do about items of the data set that cannot be used: stop with an error, or skip them."
    )
    hf_columns: Mapping[str, str] = option(
        {},
        example="image_id=coco_id",
        help="Columns of a hub data set that have other names than expected, such as answers=labels,image_id=coco_id. "
        "The expected names are question, answers, image, question_id and image_id; none means that no column differs. "
        "With question_id=none or image_id=none there is no such column, and rows or images are numbered.",
    )
    hf_splits: tuple[str, str] = option(
        ("train", "validation"), help="Splits of a hub data set for training and for evaluation, separated by a comma."
    )
    scoring: Scoring = option(
        "raw",
        help="Way in which the VLM's answers are scored against those of the annotators. The way raw compares them with what "
        "the annotators wrote. The way stem stems the words of both sides first. The way plain takes the annotators' answers "
        "as the authors of OK-VQA stemmed them, and the VLM's as they are. Runs that score in different ways are never mixed.",
    )


@dataclass(frozen=True)
class ExperimentSettings:
    """Holds what all steps of an experiment share."""

    seed: int = option(0, at_least=0, below=2**32, help="Seed of every random choice that the run makes.")
    reward_mode: RewardMode = option(
        "hard_plus_soft",
        help="Way in which the scores of a trial become its reward. "
        "The mode hard_plus_soft adds correctness (0 or 1) and VQA accuracy. The mode hard_only takes correctness alone, and "
        "soft_only takes VQA accuracy alone. The mode separated adds 2 to the VQA accuracy of a correct answer. The mode "
        "hard_plus_gtprob adds correctness and the probability of the right answers, and separated_gtprob adds 2 to this "
        "probability where the answer is correct. The mode hard_plus_gtprob_plus_rel also adds vqa_rel_score to the reward of "
        "wrong answers. The last three modes take RL data that were recorded with gt_prob=true.",
    )
    reward_weights: Mapping[str, float] = option(
        {},
        at_least=0,
        example="hard=2,soft=0.5",
        help="Weights of the terms of the reward, as name=value separated by commas, such as hard=2,soft=0.5. "
        "The names are hard (correctness), soft (VQA accuracy), gtprob (probability of the right answers) and rel "
        "(vqa_rel_score of wrong answers). A term that is not named has the weight 1, and rel has 0.1.",
    )
    model_name: str = option(
        AUTO,
        help="Name of the registered model; auto makes one of data set and VLM, such as lever-selector-mini-mini. "
        "All versions of a registered model are for one data set, VLM, encoder and way of asking and scoring.",
    )
    register: Register = option(
        "auto",
        help="Whether an evaluation registers its best epoch. With auto it does so if no objection of the data gate was "
        "overridden, the trials had contrast and training changed the picks.",
    )


@dataclass(frozen=True)
class RlDataSettings:
    """Names the RL data that a step works on."""

    rl_data: str = option(
        AUTO, help="RL data to work on: a file, a run id, runs:/<run id>, or auto for those of the newest matching rollout."
    )
    use_fallback: bool = option(False, help="Whether trials that only the fallback metric could score are used as well.")
    item_order: ItemOrder = option(
        "auto",
        help="Order of the training items that the indices in an RL data file refer to. With auto, the question ids in the "
        "file tell it. A file without question ids needs file, the order of the questions file, or question_id, the order by "
        "question id, which Lever-Plus uses.",
    )


@dataclass(frozen=True)
class MergeInputs:
    """Names the RL data that are merged."""

    parts: str = option(
        NONE, help="RL data to merge, separated by commas: files, run ids or runs:/<run id>. At least two are needed."
    )
    shards: str = option(
        NONE,
        help="All shards of one rollout, to be merged without holding them in memory: Parquet files, folders of Parquet files, "
        "run ids or runs:/<run id>, separated by commas; none merges parts instead.",
    )


@dataclass(frozen=True)
class ShardInputs:
    """Names the part of a rollout that a run records, where several machines record one rollout."""

    n_shards: int = option(
        1,
        at_least=1,
        help="Number of shards into which the queries of a rollout are divided. Each shard is recorded by a run of its own, "
        "and the entry point merge joins the shards. With 1, one run records all queries.",
    )
    shard: int = option(1, at_least=1, help="Number of the shard that this run records, from 1 to n_shards.")


@dataclass(frozen=True)
class RolloutSettings:
    """Says how trials are recorded: the candidate pools, and how many pointers each generator adds for a query.

    A pointer is an ordered choice of candidates as demonstrations. Equal pointers of a query are recorded once.
    """

    n_queries: int = option(600, at_least=2, help="Number of training items that serve as queries of the RL data.")
    shots: int = option(
        1,
        at_least=1,
        predecessor=2,
        help="Number of demonstrations in each recorded pointer. The answer after a single demonstration says most about it.",
    )
    pool_size: int = option(64, at_least=2, help="Number of candidate demonstrations in the pool of each query.")
    pool_sampler: PoolSampler = option(
        "fused-similarity",
        predecessor="random",
        help="Way in which the candidates of a pool are drawn from the training items. The similarity samplers take the "
        "nearest of all training items, by the feature of the image, of the text or of both. The sampler mixed takes a quarter "
        "of the candidates by image similarity, a quarter by text similarity and the rest at random. The sampler "
        "fixed takes the first training items, the same for all queries.",
    )
    beam_width: int = option(5, at_least=0, help="Number of pointers per query from beam search; 0 turns beam search off.")
    temperatures: tuple[float, ...] = option(
        (1.0, 1.3),
        at_least=0.05,
        help="Temperatures at which pointers are sampled from the starting policy, separated by commas.",
    )
    samples_per_temperature: int = option(
        2, at_least=0, help="Number of pointers per query sampled at each temperature; 0 turns sampling off."
    )
    retrieval_per_feature: int = option(
        1,
        at_least=0,
        help="Number of pointers per query retrieved by similarity of each feature; 0 turns retrieval off. "
        "The features are the fused, the image and the text feature.",
    )
    random_pointers: int = option(
        2, at_least=0, help="Number of pointers per query drawn uniformly at random; 0 turns random pointers off."
    )
    mine_positives: int = option(
        0, at_least=0, help="Largest number of further trials for a query that has no correct trial yet; 0 mines none."
    )
    search_positives: int = option(
        0,
        at_least=0,
        help="Largest number of further trials for each query without a correct trial, with demonstrations from the whole "
        "training set; 0 switches this search off. Training items whose answer is a right answer to the query are tried first. "
        "A demonstration with which the VLM answers correctly replaces an item in the pool of the query.",
    )
    gt_prob: bool = option(
        False,
        help="Whether to record for each trial how probable the right answers were. A local VLM must be a Qwen-VL for this, "
        "and it costs about as much as the answers. A server that tells the log probabilities of prompts, as vLLM does, is "
        "asked once for each different right answer.",
    )


@dataclass(frozen=True)
class RolloutInputs:
    """Names what a rollout starts from."""

    init: str = option(
        "random", help="Starting policy of the rollout: random for an untrained selector, a checkpoint or a model URI."
    )


@dataclass(frozen=True)
class RceSettings:
    """Says how a new selector is trained by reward-weighted cross-entropy (RCE), and how the selector is built."""

    epochs: int = option(5, at_least=1, help="Number of passes over the training queries.")
    lr: float = option(1e-4, above=0, help="Learning rate of the AdamW optimizer.")
    lr_scheduler: LrScheduler = option("constant", help="Schedule of the learning rate over all training steps.")
    batch_size: int = option(1, at_least=1, help="Number of queries in a training step.")
    temperature_start: float = option(
        2.0, at_least=0.01, help="Reward temperature at the first step; it then changes linearly to that of the last step."
    )
    temperature_end: float = option(0.5, at_least=0.01, help="Reward temperature at the last step.")
    normalize_rewards: NormalizeRewards = option(
        "z-score", help="Way in which rewards are normalised among the trials of a query."
    )
    top_k: int = option(
        0, at_least=0, help="Number of best trials kept of each query; 0 keeps all, as bad trials serve for contrast."
    )
    filter_gen_methods: tuple[str, ...] = option(
        (),
        help="Generation methods whose trials are trained on, such as beam,sample; trials of all others are left out. "
        "The value none trains on the trials of all methods. Validation queries keep all their trials.",
    )
    require_positive_query: bool = option(
        False,
        help="Whether only those queries are trained on that have a positive trial among those that filter_gen_methods keeps. "
        "All validation queries stay.",
    )
    dropout: float = option(0.0, at_least=0, below=1, help="Dropout rate in the forward pass of training.")
    grad_clip: float = option(1.0, above=0, help="Largest norm of a gradient; larger ones are scaled down to it.")
    val_share: float = option(0.2, above=0, below=1, help="Share of the queries that is held out for validation.")
    early_stopping: int = option(
        0, at_least=0, help="Number of epochs without a higher expected reward that end the training; 0 never ends it early."
    )
    n_layers: int = option(1, at_least=1, help="Number of cross-attention layers of the selector.")
    n_heads: int = option(1, at_least=1, help="Number of attention heads in each layer of the selector.")
    fusion: Fusion = option(
        "mean",
        help="Way in which image and text features become one vector: their mean, or concat for one behind the other. With "
        "image or text the selector takes only this feature, which an encoder of images or of texts alone needs.",
    )
    state_update: bool = option(
        False, help="Whether each pick changes the state of the query, so that later picks depend on earlier ones."
    )


@dataclass(frozen=True)
class TrainingInputs:
    """Names the interrupted training that a training continues."""

    resume: str = option(
        AUTO, help="Interrupted run to continue: a run id, a folder, none to start over, or auto for the newest of this step."
    )


@dataclass(frozen=True)
class GrpoSettings:
    """Says how a start checkpoint, which is also the reference policy, is optimised by GRPO.

    The defaults of ``lr``, ``batch_size``, the clip bounds and ``freeze_backbone`` were chosen by experiment
    (docs/experiments.md).
    """

    kl_beta: float = option(
        0.15, at_least=0, help="Weight beta of the KL penalty in GRPO; runs and registered versions are found by this value."
    )
    adaptive_beta: bool = option(
        False, help="Whether each epoch adapts the KL weight: times 1.5 above a KL of 0.1, divided by 1.5 below a KL of 0.01."
    )
    epochs: int = like(RceSettings, "epochs", 3)
    lr: float = like(RceSettings, "lr", 2e-4, predecessor=5e-6)
    lr_scheduler: LrScheduler = like(RceSettings, "lr_scheduler")
    batch_size: int = like(RceSettings, "batch_size", 8, predecessor=1)
    epsilon: float = option(
        0.9,
        above=0,
        below=1,
        predecessor=0.2,
        help="Lower bound to which GRPO clips the probability ratio, as the epsilon in 1 - epsilon. The ratio is the "
        "probability of a pointer under the policy, divided by that under the policy at the start of the round. So the bounds "
        "limit how far one round can move the policy.",
    )
    epsilon_high: float = option(
        5.0,
        at_least=0,
        predecessor=0.0,
        help="Upper bound to which GRPO clips the probability ratio, as the epsilon_high in 1 + epsilon_high. With 0 it equals "
        "epsilon. An epsilon that is set alone bounds the ratio on both sides.",
    )
    scale_rewards: ScaleRewards = option(
        "group", help="Standard deviation that advantages are divided by: that of the group, of the batch, or none."
    )
    mask_zero_std_groups: bool = option(False, help="Whether groups whose rewards are all equal are left out of the loss.")
    top_k: int = like(RceSettings, "top_k")
    filter_gen_methods: tuple[str, ...] = like(RceSettings, "filter_gen_methods")
    require_positive_query: bool = like(RceSettings, "require_positive_query")
    entropy_coef: float = option(0.0, at_least=0, help="Weight of the policy's entropy as a bonus in the objective.")
    freeze_backbone: bool = option(
        False, predecessor=True, help="Whether only attention layers and norms are trained, and all other weights are frozen."
    )
    grad_clip: float = like(RceSettings, "grad_clip")
    val_share: float = like(RceSettings, "val_share")
    early_stopping: int = like(RceSettings, "early_stopping")


@dataclass(frozen=True)
class RoundSettings:
    """Says how often GRPO records fresh trials of the policy that it has reached, and optimises the policy on them.

    These are the outer iterations of Algorithm 1 in the DeepSeekMath paper (arXiv:2402.03300).
    """

    rounds: int = option(
        3,
        at_least=1,
        predecessor=1,
        help="Number of rounds of GRPO. Each round after the first records fresh trials of the policy that was reached.",
    )
    kl_reference: KlReference = option(
        "round",
        help="Policy from which the KL penalty is measured: round for the policy at the beginning of each round, or start for "
        "the start checkpoint of the first round.",
    )
    round_patience: int = option(
        2,
        at_least=0,
        help="Number of rounds in a row that may bring no higher reward before the rounds end; 0 never ends them early. "
        "The reward is that of the policy's first choice, as a mean over the fresh trials of a round.",
    )


@dataclass(frozen=True)
class GrpoInputs:
    """Names the start checkpoint of a GRPO training."""

    init: str = option(
        AUTO,
        help="Start checkpoint: a folder, a .pt, .ckpt or .safetensors file, a model URI, or auto for the best epoch of the "
        "newest RCE run.",
    )


@dataclass(frozen=True)
class PresetInputs:
    """Names the preset that a command's settings are taken from."""

    preset: Preset = option(
        "default",
        help="Default set for the options left at auto: default, or predecessor for the set-up of Lever-Plus v3.",
    )


@dataclass(frozen=True)
class EvalSettings:
    """Says which questions, shot counts and baselines an evaluation has."""

    sizes: tuple[int, ...] = option(
        (100, 200, 400, 800),
        at_least=1,
        ascending=True,
        help="Numbers of evaluation questions, separated by commas; larger sets of questions contain the smaller ones.",
    )
    shots: tuple[int, ...] = option(
        (1, 2, 3, 4), at_least=1, ascending=True, help="Numbers of demonstrations to evaluate with, separated by commas."
    )
    n_selection: int = option(
        400,
        at_least=1,
        help="Number of questions that choose the best epoch; they are about images that no evaluation question is about.",
    )
    pool_size: int = like(RolloutSettings, "pool_size")
    pool_sampler: PoolSampler = like(RolloutSettings, "pool_sampler")
    order: Order = option(
        "similar-first",
        help="Order of the demonstrations in the prompt. With similar-first, the demonstration that is most similar to the "
        "question, or that a selector picked first, stands first. With similar-last, this demonstration stands last, next to "
        "the question.",
    )
    random_draws: int = option(3, at_least=1, help="Number of draws that the random baseline is the mean of.")
    n_oracle: int = option(
        50,
        at_least=0,
        help="Number of questions on which every candidate is tried alone, as an oracle; 0 skips the oracle.",
    )


@dataclass(frozen=True)
class EvaluationInputs:
    """Names the policies that an evaluation compares."""

    grpo_run: str = option(AUTO, help="GRPO run to evaluate: a run id, or auto for the newest one with this kl_beta.")
    checkpoints: str = option(
        NONE,
        help="Further checkpoints to evaluate, separated by commas: folders, .pt, .ckpt or .safetensors files, or model URIs; "
        "none adds none.",
    )


@dataclass(frozen=True)
class SweepInputs:
    """Names the KL weights of an experiment."""

    kl_betas: tuple[float, ...] = option(
        (0.12, 0.15), at_least=0, help="KL weights beta that GRPO trains with and the report compares, separated by commas."
    )


@dataclass(frozen=True)
class ComparisonInputs:
    """Names what a comparison compares, and the language of its report."""

    kl_betas: tuple[float, ...] = like(
        SweepInputs,
        "kl_betas",
        least_items=2,
        help="KL weights beta to compare, separated by commas; the newest evaluation of each is taken.",
    )
    evaluations: str = option(
        AUTO,
        help="Evaluation runs to compare, separated by commas: run ids or their first characters; auto finds them by kl_betas.",
    )
    results: str = option(
        NONE, help="File of results from elsewhere to compare instead (see docs/report.md); none compares evaluation runs."
    )
    vary: str = option(
        AUTO,
        help="Field in which the runs are meant to differ, such as lr or pool_sampler, or several of them separated by commas. "
        "Any other difference is confounding, and then there is no verdict. "
        "auto takes kl_beta where the betas differ, else the only field that differs.",
    )
    lang: Language = option("en", help="Language of the report: en for English, zh for Chinese.")


@dataclass(frozen=True)
class PromotionSettings:
    """Says when a registered version becomes the champion."""

    min_gain: float = option(
        0.0,
        at_least=0,
        help="Points of accuracy that a version must gain over the champion; 0 asks for any gain above 0.",
    )
    similarity: SimilarityEvidence = option(
        "better",
        help="How a version must compare with the strongest similarity baseline: significantly better, or only not "
        "significantly worse (not-worse). The evidence says when not-worse was asked.",
    )
    force: bool = option(False, help="Whether to promote in spite of the evidence, which a tag of the version then records.")


@dataclass(frozen=True)
class GateSettings:
    """Says how the data gate judges RL data, and what happens to bad data."""

    thresholds: Mapping[str, float | str] = option(
        {},
        example="positive_query_rate=0.05",
        help="Thresholds that replace those of the data gate's suites, as name=value separated by commas; none keeps the "
        "thresholds of the suites. An example is positive_query_rate=0.05,reward_mean.max_value=1.9.",
    )
    max_shots: int = option(
        max(EvalSettings.shots),
        at_least=1,
        help="Largest number of demonstrations that evaluation will use; every pool must hold more candidates.",
    )
    on_bad_data: OnBadData = option(
        "stop",
        help="What to do when the data fail a critical expectation: stop, or warn and go on. "
        "With warn, a tag on whatever is trained names the failed expectations.",
    )
    gate_engine: GateEngine = option(
        "pandas",
        help="Engine with which Great Expectations checks RL data. pandas keeps all RL data in memory. sql reads Parquet files "
        "in parts and keeps its tables in a temporary SQLite file, so that the RL data need not fit into memory. Both give the "
        "same verdict.",
    )


@dataclass(frozen=True)
class ValidationInputs:
    """Names the RL data that a validation compares with."""

    reference: str = option(
        NONE, help="RL data to compare with: a file, a run id or runs:/<run id>; none checks the data on their own."
    )


@dataclass(frozen=True)
class OutputSettings:
    """Says how much a command prints. Nothing of it changes a result."""

    verbose: bool = option(
        False,
        short="v",
        help="Whether to print details beside the lines at the start and the end of each step: all expectations of the data "
        "gate, the number of answers that were in the cache, and the runs that verdicts were taken from.",
    )


@dataclass(frozen=True)
class ServingSettings:
    """Says what a served retriever does by default, and how much a request may hold."""

    shots: int = option(2, at_least=1, help="Number of demonstrations where a request gives none.")
    as_messages: bool = option(False, help="Whether demonstrations are returned as chat messages where a request does not say.")
    max_rows: int = option(10_000, at_least=1, help="Largest number of rows in a request.")
    max_question_characters: int = option(2_000, at_least=1, help="Largest number of characters in a question.")
    max_image_bytes: int = option(10 * 2**20, at_least=1, help="Largest size of an image file in bytes.")
    max_image_pixels: int = option(16_000_000, at_least=1, help="Largest number of pixels in an image.")
    max_pool_image_bytes: int = option(
        64 * 2**20,
        at_least=0,
        help="Total size in bytes up to which the pool's image files are stored in the model; larger pools are stored without.",
    )
