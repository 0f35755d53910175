"""Fits texts into the fields of MLflow that hold a limited number of characters, and masks the secrets of URLs in them.

Databases differ in what they do about longer texts: SQLite takes them, PostgreSQL refuses them, and MLflow cuts some. Data that
grow are artifacts; a field holds what is seen at a glance.
"""

from __future__ import annotations

from lever_mlflow.files.urls import without_secrets

__all__ = [
    "LONGEST_DESCRIPTION",
    "LONGEST_MODEL_NAME",
    "LONGEST_PARAMETER",
    "LONGEST_RUN_NAME",
    "LONGEST_TAG",
    "LONGEST_VERSION_TEXT",
    "fitted",
]

# characters; the columns of MLflow's tables hold 250 of a run's name, 6,000 of a parameter, 8,000 of a tag of a run, 256 of the
# name of a registered model, and 5,000 of a tag or a description in the registry
LONGEST_RUN_NAME = 250
LONGEST_PARAMETER = 6_000
LONGEST_TAG = 8_000
LONGEST_DESCRIPTION = 4_000  # of a run; nobody reads more
LONGEST_MODEL_NAME = 200  # leaves room for what names made from it add
LONGEST_VERSION_TEXT = 5_000


def fitted(text: str, longest: int, whole: str = "") -> str:
    """Returns a text without secrets that a field holds; one that is cut ends with ``...``, or says where the whole is.

    A text of several lines is cut after a line.

    Args:
        text: to be written.
        longest: the number of characters that the field holds.
        whole: names the artifact that holds the whole text.
    """
    text = without_secrets(text)
    if len(text) <= longest:
        return text
    note = f"... (cut; the whole is in {whole})" if whole else "..."
    kept = text[: longest - len(note) - 1]
    lines, _, _ = kept.rpartition("\n")
    return f"{lines}\n{note}" if lines else f"{kept.rstrip(', ')}{note}"
