"""Embeds a small data set and two tiny models, so that the whole project runs without a download.

The data set has the format of OK-VQA and shows real handwritten digits. The models, a Qwen2.5-VL and a CLIP, were trained for
it.
"""

from pathlib import Path

__all__ = ["CLIP_PATH", "NAME", "VLM_PATH"]

NAME = "mini"  # the name that users give as dataset, vlm and encoder
VLM_PATH = Path(__file__).parent / "vlm"
CLIP_PATH = Path(__file__).parent / "clip"
