"""The embedded default: a miniature OK-VQA of real handwritten digits, with a tiny Qwen2.5-VL and a tiny CLIP that fit it."""

from pathlib import Path

__all__ = ["CLIP_PATH", "NAME", "VLM_PATH"]

NAME = "mini"  # what users call it
VLM_PATH = Path(__file__).parent / "vlm"
CLIP_PATH = Path(__file__).parent / "clip"
