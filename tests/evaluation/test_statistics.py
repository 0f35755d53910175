import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm, permutation_test, ttest_1samp

from lever_mlflow.evaluation.statistics import (
    detectable_difference,
    deviation_by_image,
    holm,
    interval,
    mean_interval,
    questions_needed,
    resampled_means,
    sign_flip_p_value,
)

ACCURACIES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])


def answers(questions, seed, shift=0.0):
    """Paired differences of VQA accuracies, most of them 0, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    first, second = rng.choice(ACCURACIES, (2, questions))
    second = np.where(rng.random(questions) < shift, 1.0, second)
    return np.where(rng.random(questions) < 0.3, second - first, 0.0)


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 16])
def test_interval_is_that_of_scipys_bootstrap(confidence):
    differences = answers(400, 1)
    theirs = bootstrap(
        (differences,),
        np.mean,
        method="percentile",
        n_resamples=20_000,
        confidence_level=confidence,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert mean_interval(differences, confidence, 0) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_interval_of_equal_values_is_that_value():
    assert mean_interval(np.full(50, 0.3), 0.95, 0) == pytest.approx((0.3, 0.3))


def test_interval_depends_on_its_seed_and_not_on_what_else_is_asked():
    differences = answers(100, 2)
    (alone,) = resampled_means([differences], 7)
    beside = resampled_means([answers(50, 3), differences, answers(100, 4)], 7)
    assert [len(means) for means in beside] == [10_000] * 3
    assert beside[1] == pytest.approx(alone, abs=1e-12)
    assert mean_interval(differences, 0.95, 7) == mean_interval(differences, 0.95, 7)
    assert mean_interval(differences, 0.95, 7) != mean_interval(differences, 0.95, 8)


def test_95_percent_intervals_cover_the_truth_in_93_to_97_percent_of_experiments():
    """400 questions, of which 30 % differ, some of them for the better: 2,000 experiments with a known mean."""
    better, differing = 0.2, 0.3
    gain = (1.0 - ACCURACIES.mean()) * better  # of a question that differs: its second answer becomes right
    covered = 0
    for batch in range(8):
        experiments = [answers(400, seed, better) for seed in range(250 * batch, 250 * (batch + 1))]
        ends = [interval(means, 0.95) for means in resampled_means(experiments, batch)]
        covered += sum(low <= differing * gain <= high for low, high in ends)
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize("questions", [8, 12])
def test_p_value_of_few_questions_is_scipys_exact_one(questions):
    for seed in range(5):
        differences = answers(questions, seed)
        nonzero = differences[differences != 0]
        if len(nonzero) > 1:
            theirs = permutation_test((nonzero,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
            assert sign_flip_p_value(differences) == pytest.approx(theirs)


def test_p_value_of_many_questions_is_scipys_drawn_one():
    differences = answers(400, 3, 0.15)
    nonzero = differences[differences != 0]
    theirs = permutation_test(
        (nonzero,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    assert 0.001 < sign_flip_p_value(differences) < 0.5
    assert sign_flip_p_value(differences) == pytest.approx(theirs, abs=0.01)


def test_p_value_of_right_or_wrong_answers_is_mcnemars():
    differences = np.repeat([1.0, -1.0, 0.0], [30, 14, 756])
    assert sign_flip_p_value(differences) == pytest.approx(binomtest(14, 44).pvalue)


@pytest.mark.parametrize(("values", "p_value"), [([], 1.0), ([0.0] * 9, 1.0), ([1.0], 1.0), ([0.3] * 6, 2 / 2**6)])
def test_p_value_at_the_edges(values, p_value):
    assert sign_flip_p_value(np.array(values)) == pytest.approx(p_value)


# Four images with five questions each: on two images all differences are 1, on the others 0. By hand: a resample of 4 images
# has the mean Binomial(4, 1/2) / 4, which is 0 or 1 in 1 of 16 cases each, so 2.5 % of resamples are not beyond 0 or 1. Drawn
# one by one, 20 questions have Binomial(20, 1/2) / 20, whose quantiles at 2.5 and 97.5 % are 6 and 14 of 20.
IMAGES = np.repeat([7, 3, 9, 4], 5)
ALIKE = np.repeat([1.0, 1.0, 0.0, 0.0], 5)


def test_questions_about_one_image_widen_the_interval():
    assert mean_interval(ALIKE, 0.95, 0) == pytest.approx((0.3, 0.7))
    assert mean_interval(ALIKE, 0.95, 0, IMAGES) == (0.0, 1.0)


def test_images_are_drawn_with_all_their_questions():
    """By hand, of an image with three questions and one with a single question: both, twice the first, twice the second."""
    (means,) = resampled_means([np.array([1.0, 1.0, 0.0, 1.0])], 0, [np.array([8, 8, 5, 8])])
    values, counts = np.unique(means, return_counts=True)
    assert values == pytest.approx([0.0, 0.75, 1.0])
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_the_error_by_image():
    """The deviation of 4 answers about 2 images is 1, as computed by hand.

    The residuals of the images sum to 1 and -1. So the variance of the mean is 2 / (2 - 1) * (1 + 1) / 4**2 = 1/4, which is
    that of 4 independent answers with the deviation 1.
    """
    values, images = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1, 2, 1, 2])
    assert deviation_by_image(values, images) == pytest.approx(1.0)
    assert deviation_by_image(values) == values.std(ddof=1)
    assert deviation_by_image(values, np.ones(4)) == 0.0
    means = resampled_means([ALIKE], 0, [IMAGES])[0]  # a bootstrap has the divisor I instead of I - 1
    assert means.std() == pytest.approx(deviation_by_image(ALIKE, IMAGES) / 20**0.5 * (3 / 4) ** 0.5, rel=0.03)


def test_the_differences_of_an_image_change_signs_together():
    differences = np.full(20, 0.2)
    assert sign_flip_p_value(differences) == pytest.approx(2 / 2**20)
    assert sign_flip_p_value(differences, IMAGES) == pytest.approx(2 / 2**4)
    mixed = np.array([0.3, -0.3, 0.6, 0.1, 1.0])  # by hand, the sums of three images are 0.4, -0.3 and 1.6
    images = np.array([1, 2, 3, 1, 3])
    assert sign_flip_p_value(mixed, images) == pytest.approx(4 / 8)  # |sum| >= 1.7 with + - +, + + + and their opposites


def test_one_question_for_each_image_is_as_if_images_were_not_known():
    differences, images = answers(200, 6), np.random.default_rng(0).permutation(10_000)[:200]
    assert np.array_equal(resampled_means([differences], 3, [images])[0], resampled_means([differences], 3)[0])
    assert sign_flip_p_value(differences, images) == sign_flip_p_value(differences)
    assert deviation_by_image(differences, images) == differences.std(ddof=1)


def test_p_value_of_means_of_three_draws_and_of_values_off_every_grid():
    differences = np.array([0.1 / 3, -0.2 / 3, 0.1, 0.5, 0.7 / 3, 0.9])
    theirs = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p_value(differences) == pytest.approx(theirs)
    uneven = np.random.default_rng(0).normal(0.2, 0.3, 12)
    theirs = permutation_test((uneven,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p_value(uneven) == pytest.approx(theirs, abs=0.002)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.5."""
    adjusted, levels = holm([0.03, 0.01, 0.5, 0.02])
    assert adjusted == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert levels == pytest.approx([0.05 / 2, 0.05 / 4, 0.05, 0.05 / 3])
    assert holm([0.02, 0.021])[0] == pytest.approx([0.04, 0.04])  # never below the one before
    assert holm([0.6, 0.9])[0] == [1.0, 1.0]
    assert holm([]) == ([], [])


def test_questions_needed_by_hand_and_in_use():
    # (1.95996 + 0.84162) ** 2 * (20 / 2) ** 2 = 7.84887 * 100
    assert questions_needed(2.0, 20.0) == questions_needed(-2.0, 20.0) == 785
    assert questions_needed(0.0, 20.0) is None
    assert questions_needed(50.0, 1.0) == 2
    rng = np.random.default_rng(0)
    is_significant = [ttest_1samp(rng.normal(2.0, 20.0, 785), 0.0).pvalue < 0.05 for _ in range(2000)]
    assert np.mean(is_significant) == pytest.approx(0.8, abs=0.03)


def test_the_difference_that_is_shown_is_the_inverse_of_the_questions_needed():
    difference = detectable_difference(800, 20.0, level=0.01)
    assert difference == pytest.approx((norm.isf(0.005) + norm.isf(0.2)) * 20 / 800**0.5)
    assert questions_needed(difference * 1.0001, 20.0, level=0.01) == 800
