"""Computes the official VQA accuracy.

Normalisation and score follow the VQA evaluation code (github.com/GT-Vision-Lab/VQA, ``vqaEval.py``): its punctuation
rules, number words, articles and contractions, and the mean over annotators of min(matches among the others / 3, 1).

Departures from that file's newest version:

- Prediction and answers are always normalised. The official code normalises neither where all ten annotators gave the same
  string, so that "Mars." is wrong there when all ten wrote "mars", and "two" when all ten wrote "2". Otherwise it normalises
  both as this module does.
- A prediction of which normalisation leaves nothing is never right. The official code finds it equal to an answer of which
  nothing is left either.
- An answer that consists of articles alone, such as the letter "A", keeps them. The official code leaves nothing of it.
- All periods are stripped, where the official code stops after the first 32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from lever_mlflow.data.stemming import stem_words

__all__ = ["CORRECT_FROM", "comparable_answer", "normalize_answer", "vqa_accuracy"]

CORRECT_FROM = 0.5  # lowest accuracy of a correct answer: at least two annotators gave it

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_NUMBERS = {"none": "0"} | {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_ARTICLES = frozenset({"a", "an", "the"})
# Spelling without an apostrophe -> contraction. Text is in lower case at the look-up, so the official list's capitalised
# entries (Im, Ive, Id've) would never match and are left out here.
_CONTRACTIONS = dict(
    pair.split(":")
    for pair in """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't havent:haven't
hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't itd:it'd
itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd
someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd
somethingd've:something'd've something'dve:something'd've somethingll:something'll thats:that's thered:there'd
thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've
they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've
weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's whered:where'd
wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've
whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've
wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've
y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
""".split()
)


@lru_cache(maxsize=65_536)
def normalize_answer(text: str) -> str:
    """Returns a text in the official normal form: lower case, no punctuation or articles, digits for zero to ten.

    Articles stay where there is nothing else.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    original = text
    has_number_comma = _COMMA_BETWEEN_DIGITS.search(original) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if beside_space or has_number_comma else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    kept = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def vqa_accuracy(prediction: str, answers: Sequence[str], *, stem: bool = False) -> float:
    """Returns the leave-one-out VQA accuracy of a prediction, in [0, 1].

    It is the mean over annotators of min(matches among the other annotators / 3, 1). Both sides are normalised first. A
    prediction of which that leaves nothing has accuracy 0.

    Args:
        prediction: the answer of a model.
        answers: the annotators' answers.
        stem: whether the words of both sides are stemmed after that.

    Raises:
        ValueError: ``answers`` is empty.
        ParameterError: words are to be stemmed, and the library for it is not installed.
    """
    if not answers:
        raise ValueError("vqa_accuracy needs at least one annotator answer; OK-VQA has 10 per question")
    predicted = comparable_answer(prediction, stem=stem)
    if not predicted:
        return 0.0
    matches = [comparable_answer(answer, stem=stem) == predicted for answer in answers]
    total = sum(matches)
    return sum(min((total - match) / 3, 1.0) for match in matches) / len(matches)


def comparable_answer(text: str, *, stem: bool) -> str:
    """Returns the form in which prediction and answers are compared: the normal form, on request with stemmed words.

    Raises:
        ParameterError: words are to be stemmed, and the library for it is not installed.
    """
    return stem_words(normalize_answer(text)) if stem else normalize_answer(text)
