"""Trains the tiny Qwen2.5-VL: first its vision tower, then the whole model on episodes with demonstrations.

Three auxiliary losses prevent that it matches demonstrations by family alone. The first predicts the digit from each vision
token. The second predicts digit and family from the state after the second layer, at the end of a question and at its answer.
The third has one attention head of the third layer look at the answers of matching demonstrations. The heads that predict are
not part of the trained model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from lever_mlflow.mini.families import FAMILIES
from lever_mlflow.mini.making.augment import augment, gray_images
from lever_mlflow.mini.making.episodes import Episode, Item, draw_episode
from lever_mlflow.mini.making.vlm_parts import IMAGE_TOKENS, build_model, build_processor, encode_images, sample
from lever_mlflow.vlm.prompt import build_messages

__all__ = ["train_vlm"]

_TOKENS_PER_STEP = 6000
_SHOTS_EARLY = {0: 0.2, 1: 0.4, 2: 0.4}
_SHOTS_LATE = {0: 0.06, 1: 0.12, 2: 0.14, 3: 0.20, 4: 0.36, 5: 0.06, 6: 0.06}
_EARLY_SHARE = 0.15
_AUXILIARY_WEIGHT = 0.3
_PROBED_STATE = 2  # after the second layer
_MATCHING_LAYER, _MATCHING_HEAD = 2, 0  # the third layer's first head
_LEARNING_RATE = 1.5e-3
_WARM_UP_STEPS = 150
_REPORT_EVERY = 100
_SAVE_EVERY = 500


@dataclass(frozen=True)
class Batch:
    """Holds episodes of equal shot count as tensors, with I items in an episode (demonstrations and query) and S tokens.

    ``ask_BI`` are the positions that predict an item's answer, which is the next token.
    ``matches_BII[b, i, j]`` says that item j stands before item i and has the same family and digit.
    """

    input_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor
    ask_BI: torch.Tensor
    weights_BI: torch.Tensor
    families_BI: torch.Tensor
    digits_BI: torch.Tensor
    matches_BII: torch.Tensor
    gray_NHW: torch.Tensor


class Probes(nn.Module):
    """Holds the linear heads of the auxiliary losses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vision_digit = nn.Linear(width, 10)
        self.digit = nn.Linear(width, 10)
        self.family = nn.Linear(width, len(FAMILIES))


def train_vlm(out: Path, seed: int, steps: int, vision_steps: int) -> None:
    """Trains the VLM from scratch, and writes model and processor to ``out`` every 500 steps and at the end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    processor = build_processor()
    model = build_model(processor)
    probes = Probes(model.config.get_text_config().hidden_size)
    _train_vision(model, processor, probes, generator, vision_steps)
    optimizer = _optimizer(model, probes, _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    recent: list[dict[str, float]] = []
    for step in tqdm(range(1, steps + 1), desc="episodes", mininterval=10):
        shots = _draw_shots(rng, early=step <= _EARLY_SHARE * steps)
        batch = _draw_batch(rng, generator, processor, shots)
        losses = _losses(model, processor, probes, batch)
        optimizer.zero_grad()
        losses.pop("total").backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent.append({name: value.item() for name, value in losses.items()})
        if step % _REPORT_EVERY == 0:
            means = {name: np.nanmean([r[name] for r in recent]) for name in recent[0]}
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
            recent.clear()
        if step % _SAVE_EVERY == 0:
            save_model(model, processor, out)
    save_model(model, processor, out)


def save_model(model: Any, processor: Any, out: Path) -> None:
    """Writes the weights as fp16, with all that the transformers library needs to load them; all users can read the files."""
    copy.deepcopy(model).half().save_pretrained(out)
    processor.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)  # otherwise only their owner can read safetensors


def _optimizer(model: nn.Module, probes: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    parameters = [*model.parameters(), *probes.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def _learning_rate_factor(step: int, steps: int) -> float:
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


def _train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    probes: Probes,
    generator: torch.Generator,
    steps: int,
) -> None:
    """Trains the vision tower to predict the digit from each merged vision token."""
    gray_NHW, digits = gray_images("model")
    digits_N = torch.from_numpy(digits)
    parameters = [*model.model.visual.parameters(), *probes.vision_digit.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in tqdm(range(1, steps + 1), desc="vision", mininterval=10):
        rows = torch.randint(len(gray_NHW), (256,), generator=generator)
        tokens_NTD = encode_images(model, processor, augment(gray_NHW[rows], generator))
        loss = _vision_digit_loss(probes, tokens_NTD, digits_N[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % _REPORT_EVERY == 0:
            tqdm.write(f"vision step {step}: loss {loss.item():.3f}")


def _vision_digit_loss(probes: Probes, tokens_NTD: torch.Tensor, digits_N: torch.Tensor) -> torch.Tensor:
    logits = probes.vision_digit(tokens_NTD).flatten(0, 1)
    return F.cross_entropy(logits, digits_N.repeat_interleave(IMAGE_TOKENS))


def _draw_shots(rng: np.random.Generator, *, early: bool) -> int:
    shares = _SHOTS_EARLY if early else _SHOTS_LATE
    return int(rng.choice(list(shares), p=list(shares.values())))


def _draw_batch(rng: np.random.Generator, generator: torch.Generator, processor: Qwen2_5_VLProcessor, shots: int) -> Batch:
    gray_NHW, digits_N = gray_images("model")
    rows_by_digit = [np.flatnonzero(digits_N == digit) for digit in range(10)]
    episodes = [draw_episode(rng, shots, rows_by_digit) for _ in range(_TOKENS_PER_STEP // (30 + 30 * (shots + 1)))]
    rows = torch.tensor([item.image for episode in episodes for item in episode.items])
    return encode(processor, episodes, augment(gray_NHW[rows], generator))


def encode(processor: Qwen2_5_VLProcessor, episodes: Sequence[Episode], gray_NHW: torch.Tensor) -> Batch:
    """Encodes episodes with the same number of shots as tokens and labels; images are in the order of the items."""
    items = [episode.items for episode in episodes]
    ids_BS, mask_BS = _tokenise(processor, items)
    colon, answer = processor.tokenizer.convert_tokens_to_ids([":", "Ġanswer"])
    is_ask_BS = (ids_BS[:, 1:] == colon) & (ids_BS[:, :-1] == answer)
    ask_BI = is_ask_BS.nonzero()[:, 1].view(len(items), len(items[0])) + 1
    ask_BI[:, -1] = ids_BS.shape[1] - 2  # the answer of the query is the last token, after the assistant tag
    pairs_BI2 = torch.tensor([[(item.family, item.digit) for item in row] for row in items])
    same_BII = (pairs_BI2[:, :, None] == pairs_BI2[:, None]).all(dim=-1)
    return Batch(
        input_ids_BS=ids_BS,
        attention_mask_BS=mask_BS,
        ask_BI=ask_BI,
        weights_BI=torch.tensor([[item.weight for item in row] for row in items]),
        families_BI=pairs_BI2[..., 0],
        digits_BI=pairs_BI2[..., 1],
        matches_BII=same_BII.tril(diagonal=-1),
        gray_NHW=gray_NHW,
    )


def _tokenise(processor: Qwen2_5_VLProcessor, items: Sequence[tuple[Item, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and attention mask of prompts, padded on the left and each followed by the query's answer token."""
    conversations = []
    for row in items:
        *demonstrations, query = (sample(item.question, item.answer) for item in row)
        conversations.append(build_messages(demonstrations, query))
    rendered = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    texts = [text.replace(processor.image_token, processor.image_token * IMAGE_TOKENS) for text in rendered]
    prompts = processor.tokenizer(texts, padding=True, return_tensors="pt")
    answers = processor.tokenizer([f" {row[-1].answer}" for row in items], return_tensors="pt")
    return (
        torch.cat([prompts.input_ids, answers.input_ids], dim=1),
        torch.cat([prompts.attention_mask, answers.attention_mask], dim=1),
    )


def _losses(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, probes: Probes, batch: Batch
) -> dict[str, torch.Tensor]:
    """Returns the total loss and its parts; "copied" is the share of matched answers that are predicted right."""
    vision_NTD = encode_images(model, processor, batch.gray_NHW)
    output = _forward(model, batch, vision_NTD)
    row_B1 = torch.arange(len(batch.ask_BI))[:, None]
    targets_BI = batch.input_ids_BS[row_B1, batch.ask_BI + 1]
    logits_BIV = model.lm_head(output.last_hidden_state[row_B1, batch.ask_BI]).float()
    answer_BI = F.cross_entropy(logits_BIV.transpose(1, 2), targets_BI, reduction="none")
    end_BV = model.lm_head(output.last_hidden_state[:, -1]).float()
    end = F.cross_entropy(end_BV, torch.full_like(targets_BI[:, 0], model.config.get_text_config().eos_token_id))
    losses = {
        "answer": (answer_BI * batch.weights_BI).sum() / batch.weights_BI.sum().clamp(min=1),
        "end": end,
        "vision": _vision_digit_loss(probes, vision_NTD, batch.digits_BI.flatten()),
        "probe": _probe_loss(probes, output.hidden_states[_PROBED_STATE], batch),
        "match": _match_loss(output.attentions[_MATCHING_LAYER][:, _MATCHING_HEAD], batch),
    }
    auxiliary = losses["vision"] + losses["probe"] + losses["match"]
    total = losses["answer"] + 0.3 * end + _AUXILIARY_WEIGHT * auxiliary
    right_BI = (logits_BIV.argmax(dim=-1) == targets_BI).float()
    matched_BI = batch.matches_BII.any(dim=-1)
    return {"total": total, **losses, "copied": right_BI[matched_BI].mean().detach()}


def _forward(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, vision_NTD: torch.Tensor) -> Any:
    """Runs the language model on image tokens and text, and returns its output with hidden states and attention weights."""
    is_image_BS = batch.input_ids_BS == model.config.image_token_id
    positions, _ = model.model.get_rope_index(
        batch.input_ids_BS,
        mm_token_type_ids=is_image_BS.int(),
        image_grid_thw=torch.tensor([[1, 4, 4]]).expand(len(vision_NTD), 3),
        attention_mask=batch.attention_mask_BS,
    )
    embeddings = model.model.get_input_embeddings()(batch.input_ids_BS)
    embeddings = embeddings.masked_scatter(is_image_BS[..., None], vision_NTD.to(embeddings.dtype))
    return model.model.language_model(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=batch.attention_mask_BS,
        use_cache=False,
        output_hidden_states=True,
        output_attentions=True,
    )


def _probe_loss(probes: Probes, state_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the loss of predicting digit and family at the end of a question and at its answer."""
    row_B1 = torch.arange(len(batch.ask_BI))[:, None]
    losses = []
    for position_BI in (batch.ask_BI, batch.ask_BI + 1):
        state = state_BSD[row_B1, position_BI].flatten(0, 1)
        losses.append(F.cross_entropy(probes.digit(state), batch.digits_BI.flatten()))
        losses.append(F.cross_entropy(probes.family(state), batch.families_BI.flatten()))
    return torch.stack(losses).mean()


def _match_loss(attention_BSS: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns minus the log of the attention that a question pays to the answers of its matches; 0 without matches."""
    row_B11 = torch.arange(len(batch.ask_BI))[:, None, None]
    attention_BII = attention_BSS[row_B11, batch.ask_BI[:, :, None], batch.ask_BI[:, None] + 1]
    paid_BI = (attention_BII * batch.matches_BII).sum(dim=-1)
    matched_BI = batch.matches_BII.any(dim=-1)
    return -(paid_BI[matched_BI].clamp(min=1e-6).log().sum()) / max(int(matched_BI.sum()), 1)
