import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.comparison_samples import PREDECESSOR, compared, right, run
from hypothesis import given, settings
from hypothesis import strategies as st

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import html, markdown, verdict
from lever_mlflow.comparison.results import read_results, results_of
from lever_mlflow.comparison.terminal import summary
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.comparison.words import WORDS
from lever_mlflow.evaluation.overlap import IdenticalPicks, PickOverlap
from lever_mlflow.exceptions import DataError

FUZZ_EXAMPLES = int(os.environ.get("LEVER_FUZZ_EXAMPLES", "60"))
GOLDEN = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def predecessor():
    return compare(read_results(PREDECESSOR), {}, seed=0)


def row(page, *cells):
    """Whether a table of a Markdown page has a row that begins with these cells."""
    return "| " + " | ".join(cells) + " |" in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_golden_report(predecessor, language):
    """Delete the file and run this to write it anew; then read it."""
    path = GOLDEN / f"predecessor_report_{language}.md"
    page = markdown(predecessor, language, ["training_curves.png", "accuracy.png", "differences.png"])
    if not path.exists():
        path.write_text(page, encoding="utf-8")
        pytest.fail(f"{path} is written anew: read it")
    assert page == path.read_text(encoding="utf-8")


def test_the_chinese_report_has_the_predecessors_rows_and_not_its_wrong_reading(predecessor):
    page = markdown(predecessor, "zh")
    assert "### KL_BETA=0.12 训练指标" in page
    assert row(page, "Epoch", "Train Loss", "Val Loss", "PPO Loss", "KL", "Adv Std", "Adv Max", "Beta")
    assert row(page, "样本数", "Shot 1", "Shot 2", "Shot 3", "Shot 4")
    assert row(page, "200", "57.0%", "56.1%", "55.1%", "55.2%")
    assert row(page, "800", "49.75%", "47.8%", "47.15%", "47.83%")
    for shots, reference, beta, difference, arrow in (
        (1, "58.8%", "57.0%", "-1.8%", "⬇️"),
        (2, "56.6%", "56.1%", "-0.5%", "⬇️"),
        (3, "53.9%", "55.1%", "+1.2%", "⬆️"),
        (4, "55.2%", "55.2%", "0.0%", "➡️"),
    ):
        assert f"| 200 | {shots} | {reference} | {beta} | {difference} | {arrow} |" in page
    assert row(page, "平均差异", "-0.28%", "-0.28%")
    assert row(page, "提升的配置数", "1/16", "1/16")
    assert "0.08131 (-13.5%) | 0.07414 (-8.8%)" in page
    assert "策略向初始策略回退" in page
    assert "远离初始策略" not in page
    assert "5/800 (0.6%)" in page
    assert "664/800 (83.0%)" in page
    assert "KL_BETA=0.12、0.15 不可比较" in page
    assert row(page, "start_checkpoint", "RCE epoch 5", "RCE epoch 2", "混淆因素")
    assert "KL_BETA=0.12：Epoch 1、2 的 4 个配置结果完全相同。" in page
    assert "?" not in page
    assert "待填充" not in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_word_is_left_in_the_other_language(predecessor, language):
    page = markdown(predecessor, language)
    if language == "en":
        assert not re.search("[\u4e00-\u9fff]", page)
    else:
        titles = [line for line in page.splitlines() if line.startswith("#")]
        assert all(re.search("[\u4e00-\u9fff]", title) for title in titles)


def test_verdicts():
    better, worse, other = run(0.12, right(60)), run(0.15, right(40)), run(0.15, right(61))
    assert verdict(compared(better, worse), "en") == (
        "Betas 0.12, 0.15: comparable; 0.12 better than 0.15 at 2 shot(s) by 20.0 points (paired on the same questions, "
        "corrected for 1 comparisons)."
    )
    assert "0.15 better than 0.12" in verdict(compared(run(0.12, right(40)), run(0.15, right(60))), "en")
    assert verdict(compared(better, other), "en") == (
        "Betas 0.12, 0.15: comparable; no difference at any shot count that these 100 questions can show."
    )
    confounded = compared(better, run(0.15, right(40), config={"lr": 1.0, "start": "rce epoch 4"}))
    assert verdict(confounded, "en") == "Betas 0.12, 0.15 are not comparable: the runs also differ in lr."
    assert verdict(compared(better), "en") == "Beta 0.12 alone: nothing to compare it with."


def test_words_of_superiority_need_significance():
    page = markdown(compared(run(0.12, right(51)), run(0.15, right(50))), "en")
    assert "better" not in page.replace("nothing shows another one to be better", "")
    assert "no difference that these 100 questions can show (paired on the same questions). The largest is +1.0 %" in page
    assert "to see a difference this small takes about 785 questions." in page


def test_the_way_of_the_kl_is_read_off_the_numbers():
    page = markdown(compared(run(0.12, right(51), right(51)), run(0.15, right(50))), "en")
    reading = "rises throughout, from 0.01 to 0.02 (+100.0 %); the policy moves further away from the start policy"
    assert row(page, "kl", "0.01", "0.02 (+100.0 %)", reading)


def test_missing_cells_are_shown_with_the_command_that_fills_them():
    first, second = run(0.12, right(51), sizes=(50,)), run(0.15, right(50), sizes=(50, 100))
    page = markdown(compared(first, second), "en")
    assert row(page, "100", "2", "50.0 %", "missing", "missing", "missing", "missing", "missing", "missing", "missing")
    command = "mlflow run . --env-manager local -e evaluate -P kl_beta=0.12 -P sizes=50,100 -P shots=2"
    assert row(page, "0.12", "1", "100/2", command)


def test_why_policies_pick_the_same_in_words():
    reason = IdenticalPicks(rule="same_order", leading=3, moved=0.044, median=0.19, tightest=0.0014)
    assert (
        Wording("en")
        .explain(reason)
        .endswith("while the closest of the first 3 were 0.19 apart in the median question and 0.0014 in the tightest")
    )
    small = IdenticalPicks(rule="small_pool", pool_size=4, shots=3)
    assert Wording("zh").explain(small) == "候选池太小：4 个候选几乎无法选出 3 个"
    same = PickOverlap(first="epoch 1", second="epoch 2", shots=2, ordered=1.0, unordered=1.0, reason=reason)
    beside = PickOverlap(first="start", second="epoch 1", shots=2, ordered=0.905, unordered=0.95)
    page = markdown(compared(run(0.12, right(60), right(60), overlap=(same, beside))), "zh")
    assert "| 0.12 | 1 / 2 | 1/1 | Shot 2 100.0% | 1 个配置完全相同；示例选择：logits 的顺序没有改变" in page
    assert "### KL_BETA=0.12：任意两个 checkpoint" in page
    assert "| epoch 1 / epoch 2 | 2 | 100.0% | 100.0% | logits 的顺序没有改变" in page
    assert "| start / epoch 1 | 2 | 90.5% | 95.0% |  |" in page


def test_more_than_two_betas_get_a_curve_a_ranking_and_tests_against_the_best():
    facts = compared(*(run(b, right(n), selection=s) for b, n, s in ((0.05, 90, 40.0), (0.12, 60, 70.0), (0.3, 30, 50.0))))
    figures = draw_figures(facts)
    page = markdown(facts, "en", figures)
    assert "beta_curve.png" in figures
    assert row(page, "1", "0.12", "1", "70.0 %", "60.0 %", "[+50.00, +70.00]", "0.01", "m version 7 (alias kl-0.12)")
    assert page.index("Differences are KL_BETA=0.05 minus KL_BETA=0.12") < page.index("Differences are KL_BETA=0.3 minus")


def test_three_betas_from_elsewhere_are_compared_at_their_last_epoch_in_common():
    runs = [
        {"kl_beta": beta, "epochs": [{"epoch": e, "accuracy": {"200": {"1": value - 1 + e}}} for e in (1, 2)]}
        for beta, value in ((0.05, 40.0), (0.12, 51.0), (0.3, 60.0))
    ]
    facts = compare(results_of({"unit": "percent", "runs": runs}), {}, seed=0)
    assert [(row.beta, row.label, row.points, row.primary) for row in facts.differences] == [
        (0.05, 2, -20.0, True), (0.12, 2, -9.0, True),
    ]  # fmt: skip
    page = markdown(facts, "en", draw_figures(facts))
    assert "Differences are KL_BETA=0.05" not in page  # a bound is told instead
    assert "| 200 | 1 | 61.0 % | 41.0 % | -20.0 % | ⬇️ significant |" in page
    assert "| 200 | 1 | 61.0 % | 52.0 % | -9.0 % | ⬇️ |" in page  # error sqrt((61 * 39 + 52 * 48) / 200) = 4.9
    assert row(page, "1", "0.3", "2", "not stated", "61.0 %", "not stated", "missing", "not registered")


def test_questions_and_answers_are_escaped():
    texts = {1000 + i: f"<img src=x onerror=alert({i})> | [a](b)?" for i in range(100)}
    facts = compared(run(0.12, right(60)), run(0.15, right(40)), questions=texts)
    assert facts.examples
    assert "<img src=x" not in markdown(facts, "en")
    page = html(facts, "en", draw_figures(facts))
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(40)&gt;" in page


class Links(HTMLParser):
    """Collects what a page would load, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.links, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_whole_and_loads_nothing(predecessor, language):
    figures = draw_figures(predecessor)
    parser = Links()
    page = html(predecessor, language, figures)
    parser.feed(page)
    assert parser.open == []
    assert len(parser.links) == len(figures) == 3
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert f'<html lang="{language}">' in page
    assert WORDS[language]["percent"].format(value="58.8") in page


def test_fifty_betas_of_three_epochs():
    rng = np.random.default_rng(0)
    pairs = [run(round(0.01 * i, 2), *(rng.integers(0, 2, 100).astype(float) for _ in range(3))) for i in range(1, 51)]
    facts = compared(*pairs)
    page = html(facts, "en", draw_figures(facts))
    assert len([row for row in facts.differences if row.primary]) == 49
    assert page.count("<h3>KL_BETA=0.5: accuracy</h3>") == 3


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=8))
cells = st.dictionaries(
    st.sampled_from(["100", "200", "0", "x"]),
    st.dictionaries(st.sampled_from(["1", "2", "4"]), st.one_of(st.none(), st.floats(0, 100), scalars), max_size=3),
    max_size=3,
)
epochs = st.fixed_dictionaries(
    {"epoch": st.integers(1, 4)},
    optional={
        "accuracy": cells,
        "kl": st.one_of(st.floats(-1, 10), scalars),
        "advantage_std": st.floats(0, 1),
        "val_loss": st.just(0.0),
    },
)
runs = st.fixed_dictionaries(
    {"kl_beta": st.sampled_from([0, 0.05, 0.12, 0.15]), "epochs": st.lists(epochs, min_size=1, max_size=3)},
    optional={
        "config": st.dictionaries(st.text(max_size=6), scalars, max_size=3),
        "rl_data": st.dictionaries(st.sampled_from(["n_queries", "n_positive_queries", "mean_reward", "digest"]), scalars),
        "best_epoch": st.integers(1, 3),
        "selection_accuracy": st.dictionaries(st.sampled_from(["1", "2"]), st.floats(0, 100)),
        "baselines": st.dictionaries(st.text(max_size=6), cells, max_size=2),
        "registered": st.fixed_dictionaries({"name": st.text(), "version": st.text(), "alias": st.text()}),
    },
)


def pages_or_error(content, language):
    """The report in three formats, or the message of the error, which stands alone."""
    try:
        facts = compare(results_of(content), {}, seed=0)
    except DataError as error:
        return [str(error)]
    figures = draw_figures(facts)
    return [markdown(facts, language, figures), html(facts, language, figures), summary(facts)]


@settings(max_examples=FUZZ_EXAMPLES, deadline=None)
@given(st.fixed_dictionaries({"unit": st.just("percent"), "runs": st.lists(runs, max_size=4)}), st.sampled_from(["en", "zh"]))
def test_any_results_file_gives_a_report_or_a_one_line_error(content, language):
    pages = pages_or_error(content, language)
    if len(pages) == 1:
        assert len(pages[0].splitlines()) == 1
        return
    for page in pages:
        page.encode("utf-8")
        assert not re.search(r"\bnan\b|\binf\b", page.replace("base64", ""))
