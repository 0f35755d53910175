import string

from lever_mlflow.comparison.words import WORDS


def test_both_vocabularies_have_the_same_keys_and_fields():
    fields = [
        {key: {name for _, name, _, _ in string.Formatter().parse(text) if name} for key, text in words.items()}
        for words in WORDS.values()
    ]
    assert fields[0] == fields[1]
