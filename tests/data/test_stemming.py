import sys

import pytest

from lever_mlflow.data.stemming import stem_words
from lever_mlflow.exceptions import ParameterError


@pytest.mark.parametrize(
    ("text", "stemmed"),
    # as in the annotation files of OK-VQA
    [
        ("racing", "race"),
        ("toys r us", "toy r us"),
        ("elevators", "elev"),
        ("decorations", "decor"),
        ("jeans", "jean"),
        ("", ""),
    ],
)
def test_stems_are_those_of_ok_vqa(text, stemmed):
    assert stem_words(text) == stemmed


def test_without_the_library_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    stem_words.cache_clear()
    with pytest.raises(ParameterError, match=r"^scoring=stem needs .*: python -m pip install --editable '\.\[stem\]'$"):
        stem_words("racing")
