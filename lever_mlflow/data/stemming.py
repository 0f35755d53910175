"""Stems English words by the Snowball algorithm, with the optional ``snowballstemmer`` library.

The authors of OK-VQA stemmed the answers in its annotation files, but did not publish how. Their stems, such as ``elev`` for
"elevators" and ``decor`` for "decorations" (listed in OpenFlamingo's ``ok_vqa_utils.py``), are those of Snowball's English
stemmer rather than of a lemmatizer.
"""

from __future__ import annotations

from functools import lru_cache

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.invocation import program

__all__ = ["stem_words"]


@lru_cache(maxsize=65_536)
def stem_words(text: str) -> str:
    """Returns a text in lower case with each of its words stemmed.

    Raises:
        ParameterError: the library is not installed.
    """
    try:
        import snowballstemmer
    except ImportError:
        raise ParameterError(
            "scoring=stem needs the snowballstemmer library; install it with: "
            f"{program('python')} -m pip install --editable '.[stem]'"
        ) from None
    stemmer = snowballstemmer.stemmer("english")  # it holds the word at work, so that threads cannot share one
    return " ".join(stemmer.stemWords(text.split()))
