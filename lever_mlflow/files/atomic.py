"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["build_folder", "write_whole"]


def build_folder(root: Path, build: Callable[[Path], None]) -> Path:
    """``root``, made on first use by ``build``, which fills an empty folder beside it; what fails leaves nothing.

    ``root`` names what ``build`` writes, so when another process is faster its folder is as good.
    """
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        build(building)
        building.chmod(0o755)
        try:
            building.rename(root)
        except OSError:
            if not root.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    os.replace(part.name, path)
