"""Builds the untrained tiny VLM with its tokenizer and processor, and encodes batches of images with its vision tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from lever_mlflow.data.samples import Sample
from lever_mlflow.mini.dataset import IMAGE_SIZE
from lever_mlflow.mini.families import FAMILIES
from lever_mlflow.mini.making.episodes import answer_vocabulary
from lever_mlflow.vlm.prompt import build_messages

__all__ = ["IMAGE_TOKENS", "build_model", "build_processor", "encode_images", "sample"]

IMAGE_TOKENS = 4  # of a 56x56 image: patches of 14 pixels, merged 2x2
_MAX_SHOTS_IN_TEXT = 8
_VOCABULARY_SIZE = 1528  # byte alphabet and merges; the 8 special tokens make it 1,536
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen's own template, for images, videos and text.
_CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sample(question: str, answer: str, image_path: Path = Path("digit.jpg")) -> Sample:
    """Makes a sample for a prompt; its ids are 0."""
    return Sample(0, 0, 0, question, image_path, (answer,))


def build_processor() -> Qwen2_5_VLProcessor:
    """Builds the processor with a tokenizer that is trained on the task's text; every answer with its space is one token."""
    size: Any = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}  # in pixels, despite the names
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=_train_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=_CHAT_TEMPLATE,
    )
    split = [a for a in answer_vocabulary() if len(processor.tokenizer(f" {a}").input_ids) != 1]
    if split:
        raise ValueError(f"answers of more than one token: {split}; raise the vocabulary size")
    return processor


def _corpus() -> list[str]:
    """Returns the text of prompts. Answers are repeated, so that they merge to one token before the longest questions do."""
    question = FAMILIES[0].phrasings[0]
    systems = [
        str(build_messages([sample(question, "")] * shots, sample(question, ""))[0]["content"][0]["text"])
        for shots in range(_MAX_SHOTS_IN_TEXT + 1)
    ]
    questions = [f"Question: {text} Short answer:" for family in FAMILIES for text in family.phrasings]
    answers = [f" {answer}\n" for answer in answer_vocabulary()]
    return ["system\n", "user\n", "assistant\n"] * 10 + systems * 10 + questions * 5 + answers * 10


def _train_tokenizer() -> Qwen2Tokenizer:
    empty: Any = Qwen2Tokenizer()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY_SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    vocabulary, merges = _vocabulary_and_merges(tokenizer)
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL_TOKENS),
        padding_side="left",  # set later, it would be lost when the processor is saved
        model_max_length=4096,
    )


def _vocabulary_and_merges(tokenizer: Tokenizer) -> tuple[dict[str, int], Any]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def build_model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """Builds a randomly initialised Qwen2.5-VL of about 1 M parameters that fits the processor."""
    ids = dict(zip(_SPECIAL_TOKENS, processor.tokenizer.convert_tokens_to_ids(list(_SPECIAL_TOKENS)), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "fullatt_block_indexes": [0, 1],
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # gives the attention weights, and is faster on CPU at this size
    return model


def encode_images(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, gray_NHW: torch.Tensor
) -> torch.Tensor:
    """Returns the merged vision tokens of 56x56 gray images, shape [images, 4, hidden].

    They equal those of the vision tower's ``forward``, which is slower because it attends to one image at a time in a loop.
    """
    visual: Any = model.model.visual
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    # A still image fills both frames of a temporal patch, so the frames of the kernel can be summed.
    kernel_EChw = visual.patch_embed.proj.weight.sum(dim=2)
    x_NEhw = F.conv2d((gray_NHW[:, None] - mean) / std, kernel_EChw, stride=visual.patch_size)
    count, width = x_NEhw.shape[:2]
    # Patches are ordered row by row within each 2x2 block that the merger joins.
    x = x_NEhw.view(count, width, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(count, 16, width)
    position = torch.arange(16).view(2, 2, 2, 2)  # block row, block column, row, column
    rows, columns = ((position >> 3 & 1) * 2 + (position >> 1 & 1)), ((position >> 2 & 1) * 2 + (position & 1))
    rope = visual.rotary_pos_emb(x, torch.stack([rows.flatten(), columns.flatten()], dim=1))
    for block in visual.blocks:
        x = x + _attend(block.attn, block.norm1(x), rope)
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x).view(count, IMAGE_TOKENS, -1)


def _attend(attention: Any, x_NPE: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    count, patches, _ = x_NPE.shape
    qkv = attention.qkv(x_NPE).view(count, patches, 3, attention.num_heads, -1)
    query, key = apply_rotary_pos_emb_vision(qkv[:, :, 0], qkv[:, :, 1], *rope)
    query, key, value = (t.transpose(1, 2) for t in (query, key, qkv[:, :, 2]))
    weights = (query @ key.transpose(2, 3) * attention.scaling).softmax(dim=-1)
    return attention.proj((weights @ value).transpose(1, 2).reshape(count, patches, -1))
