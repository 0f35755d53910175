import numpy as np
from helpers.comparison_samples import compared, right, run

from lever_mlflow.comparison.page import markdown
from lever_mlflow.comparison.terminal import summary


def sample_facts():
    first, second = (
        run(0.12, right(40)),
        run(0.15, right(60), best_single={"questions": 50, "oracle": 0.9, "random": 0.4, "winnable": 0.62}),
    )
    return compared(first, second)


def test_summary_for_the_terminal():
    lines = summary(sample_facts(), "en").splitlines()
    assert lines[0] == "VQA accuracy in percent on 100 questions"
    assert lines[1].split() == ["0", "shots", "2", "shots"]
    assert ["zero-shot", "30.00", "-"] in [line.split() for line in lines]
    assert ["beta", "0.15", "epoch", "1", "*", "-", "60.00"] in [line.split() for line in lines]
    title = lines.index("Gain of the starred epochs over the strongest baseline, in points with 95 % intervals")
    assert lines[title + 1].split()[:5] == ["beta", "0.12", "2", "shots", "+10.00"]
    assert lines[title + 2].split()[-2:] == ["30.00", "zero-shot"]
    assert "* beta 0.12: epoch 1, chosen on selection questions, is m version 7, alias kl-0.12" in lines
    oracle = lines.index(
        "oracle: 90.00 with the best single demonstration of each pool, 40.00 with a random one (on the first 50 questions)"
    )
    assert lines[oracle + 1].strip() == (
        "which demonstration is picked matters for 62 % of these questions; for the others, all candidates are equally good"
    )
    assert lines[-2] == (
        "Verdict: Betas 0.12 and 0.15 can be compared. On these 100 questions, beta 0.15 is better than beta 0.12 by 20.00 "
        "points at 2 shots (tested on the same questions in pairs; corrected for 1 comparison)."
    )
    assert lines[-1] == "Choice of KL_BETA: KL_BETA=0.15. Every other beta is significantly worse at some number of shots."


def test_summary_in_chinese():
    lines = summary(sample_facts(), "zh").splitlines()
    assert lines[0] == "100 道题目上的 VQA 正确率（%）"
    assert lines[1].split() == ["Shot", "0", "Shot", "2"]
    assert ["KL_BETA=0.15", "Epoch", "1", "*", "-", "60.00"] in [line.split() for line in lines]
    title = lines.index("带星号的 Epoch 相对于最强基线的提升（百分点）及 95% 区间")
    assert lines[title + 1].split()[:4] == ["KL_BETA=0.12", "Shot", "2", "+10.00"]
    assert lines[-1] == "KL_BETA 选择建议： KL_BETA=0.15：其余的 KL_BETA 都在某个 Shot 数上显著更差。"
    assert not any("shot" in line for line in lines if "zero-shot" not in line)


def test_an_epoch_that_was_not_evaluated_has_no_row():
    result, records = run(0.12, right(40))
    unevaluated = result.epochs[0].model_copy(update={"epoch": 2, "accuracy": {}})
    facts = compared((result.model_copy(update={"epochs": (*result.epochs, unevaluated)}), records))
    assert [line for line in summary(facts, "en").splitlines() if line.startswith("beta 0.12 epoch")] == [
        "beta 0.12 epoch 1 *        -    40.00"
    ]


def test_without_an_evaluated_epoch_there_is_no_table():
    pairs = [run(beta, right(40), baselines={}) for beta in (0.12, 0.15)]
    pairs = [
        (result.model_copy(update={"epochs": (result.epochs[0].model_copy(update={"accuracy": {}}),)}), records)
        for result, records in pairs
    ]
    facts = compared(*pairs)
    assert summary(facts, "en").splitlines()[-2:] == [
        "Verdict: No accuracy is known of betas 0.12 and 0.15; the report shows their training curves.",
        "Choice of KL_BETA: None, because no accuracy is known.",
    ]
    assert "VQA accuracy" not in summary(facts, "en")
    assert "Statistical summary" not in markdown(facts, "en")


def test_terminal_and_report_round_a_cell_alike():
    """55.3 of 80 are 69.125 %, which the float falls short of, so that formatting it would give 69.12."""
    accuracies = np.array([1.0] * 55 + [0.3] + [0.0] * 24)
    facts = compared(run(0.12, accuracies, sizes=(80,), baselines={}))
    assert f"{facts.runs[0].epochs[0].accuracy[80][2]:.2f}" == "69.12"
    assert summary(facts, "en").splitlines()[2].endswith(" 69.13")
    assert "| KL_BETA=0.12, epoch 1 | 69.13 % |" in markdown(facts, "en")
