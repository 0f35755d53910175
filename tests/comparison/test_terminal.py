from helpers.comparison_samples import compared, right, run

from lever_mlflow.comparison.terminal import summary


def test_summary_for_the_terminal():
    first, second = (
        run(0.12, right(40)),
        run(0.15, right(60), best_single={"questions": 50, "oracle": 0.9, "random": 0.4, "winnable": 0.62}),
    )
    lines = summary(compared(first, second)).splitlines()
    assert lines[0] == "VQA accuracy in percent on 100 questions"
    assert lines[1].split() == ["0", "shots", "2", "shots"]
    assert ["zero-shot", "30.00", "-"] in [line.split() for line in lines]
    assert ["beta", "0.15", "epoch", "1", "*", "-", "60.00"] in [line.split() for line in lines]
    title = lines.index("Gain of the starred epochs over the strongest baseline, in points with 95 % intervals")
    assert lines[title + 1].split()[:5] == ["beta", "0.12", "2", "shots", "+10.00"]
    assert lines[title + 2].split()[-2:] == ["30.00", "zero-shot"]
    assert "* beta 0.12: epoch 1, chosen on selection questions, is m version 7, alias kl-0.12" in lines
    assert (
        "oracle: 90.00 with the best single demonstration of each pool, on the first 50 questions (40.00 with the mean one; "
        "it matters on 62 % of them)"
    ) in lines
