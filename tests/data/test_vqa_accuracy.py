import pytest

from lever_mlflow.data.vqa_accuracy import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("The Dog.", "dog"),
        ("a  two-way   street", "2 way street"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("It's", "it's"),
        ("pony tail, brown", "pony tail brown"),
        ("none", "0"),
        ("coca-cola / pepsi", "coca cola pepsi"),
        ("wi - fi", "wi fi"),
        ("an apple\n", "apple"),
        ("A", "a"),
        ("The a.", "the a"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normal_form(raw, normal):
    assert normalize_answer(raw) == normal


@pytest.mark.parametrize(
    ("matching", "score"),
    # n of 10 match: the n matchers see n-1 others, the rest see n. By hand: [n*min((n-1)/3,1) + (10-n)*min(n/3,1)]/10
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_leave_one_out_score(matching, score):
    answers = ["mars"] * matching + ["venus", "earth", "pluto"] * 4
    assert vqa_accuracy("Mars", answers[:10]) == pytest.approx(score, abs=1e-12)


def test_both_sides_are_normalised():
    assert vqa_accuracy("2", ["Two."] * 10) == 1.0
    assert vqa_accuracy("the two", ["2"] * 10) == 1.0


def test_all_annotators_agreeing_changes_nothing():
    assert vqa_accuracy("Mars.", ["mars"] * 10) == vqa_accuracy("mars", ["Mars."] * 10) == 1.0


@pytest.mark.parametrize("prediction", ["", " ", "?!"])
@pytest.mark.parametrize("answer", ["A", "the", "", "?", "mars"])
def test_nothing_is_never_right(prediction, answer):
    assert vqa_accuracy(prediction, [answer] * 10) == 0.0


def test_an_article_alone_is_an_answer():
    assert vqa_accuracy("a", ["A"] * 10) == 1.0
    assert vqa_accuracy("the", ["A"] * 10) == 0.0


def test_words_of_both_sides_are_stemmed_after_normalisation():
    answers = ["racing"] * 2 + ["The races!"] * 2 + ["sailing"] * 6
    assert vqa_accuracy("race", answers) == 0.0
    assert vqa_accuracy("race", answers, stem=True) == 1.0  # four of ten match
    assert vqa_accuracy("", [""] * 10, stem=True) == 0.0


def test_no_answers_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("x", [])
