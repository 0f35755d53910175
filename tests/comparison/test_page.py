import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.comparison_samples import PREDECESSOR, compared, right, run, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.facts import LinkedRun
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import choice, html, markdown, verdict
from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.pictures import pictures
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
    page = markdown(predecessor, language, ["intervals.png", "training_curves.png", "accuracy.png", "differences.png"])
    if not path.exists():
        path.write_text(page, encoding="utf-8")
        pytest.fail(f"{path} is written anew: read it")
    assert page == path.read_text(encoding="utf-8")


def test_the_chinese_report_has_the_predecessors_rows_and_not_its_wrong_reading(predecessor):
    page = markdown(predecessor, "zh")
    assert "### KL_BETA=0.12 训练指标" in page
    assert row(page, "Epoch", "Train Loss", "Val Loss", "PPO Loss", "KL", "Adv Std", "Adv Max", "Beta")
    assert row(page, "题目数", "Shot 1", "Shot 2", "Shot 3", "Shot 4")
    assert row(page, "200", "57.00%", "56.10%", "55.10%", "55.20%")
    assert row(page, "800", "49.75%", "47.80%", "47.15%", "47.83%")
    for shots, reference, beta, difference, reading in (
        (1, "58.80%", "57.00%", "-1.80", "不显著"),
        (2, "56.60%", "56.10%", "-0.50", "不显著"),
        (3, "53.90%", "55.10%", "+1.20", "不显著"),
        (4, "55.20%", "55.20%", "0.00", "持平"),
    ):
        assert f"| 200 | {shots} | {reference} | {beta} | {difference} | {reading} |" in page
    assert "⬆" not in page
    assert "⬇" not in page
    assert row(page, "平均差异", "-0.28", "-0.28")
    assert row(page, "高于参照的配置数", "1/16", "1/16")
    assert "0.08131 (-13.5%) | 0.07414 (-8.8%)" in page
    assert "策略向初始策略回退" in page
    assert "远离初始策略" not in page
    assert "5/800 (0.6%)" in page
    assert "664/800 (83.0%)" in page
    assert "KL_BETA=0.12、0.15 不可比较" in page
    assert row(page, "start_checkpoint", "RCE epoch 5", "RCE epoch 2", "混淆因素")
    assert "KL_BETA=0.12：Epoch 1、2 的 4 个配置正确率完全相同。" in page
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
        "Betas 0.12 and 0.15 can be compared. On these 100 questions, beta 0.12 is better than beta 0.15 by 20.00 points at "
        "2 shots (tested on the same questions in pairs; corrected for 1 comparison)."
    )
    assert "beta 0.15 is better than beta 0.12" in verdict(compared(run(0.12, right(40)), run(0.15, right(60))), "en")
    assert verdict(compared(better, other), "en") == (
        "Betas 0.12 and 0.15 can be compared. On these 100 questions, no difference between them is significant at any number "
        "of shots."
    )
    confounded = compared(better, run(0.15, right(40), config={"lr": 1.0, "start": "rce epoch 4"}))
    assert verdict(confounded, "en") == "Betas 0.12 and 0.15 cannot be compared, because their runs also differ in lr."
    assert verdict(compared(better), "en") == "There is only one beta, 0.12, so there is nothing to compare it with."


def test_words_of_superiority_need_significance():
    page = markdown(compared(run(0.12, right(51)), run(0.15, right(50))), "en")
    baselines = [line for line in page.splitlines() if "is better than random" in line or "is better than zero-shot" in line]
    assert len(baselines) == 4  # both betas are significantly better than both of them
    assert "better" not in "".join(set(page.splitlines()) - set(baselines)).replace("No other beta is shown to be better", "")
    assert "no difference is significant on these 100 questions (tested on the same questions in pairs). " in page
    assert "The largest difference is +1.00 points [0.00, +3.00] at 2 shots. It would take about 785 questions" in page


def test_the_way_of_the_kl_is_read_off_the_numbers():
    page = markdown(compared(run(0.12, right(51), right(51)), run(0.15, right(50))), "en")
    reading = "rises throughout, from 0.01 to 0.02 (+100.0 %); the policy moves further away from the start policy"
    assert row(page, "kl", "0.01", "0.02 (+100.0 %)", reading)


def test_missing_cells_are_shown_with_the_command_that_fills_them():
    first, second = run(0.12, right(51), sizes=(50,)), run(0.15, right(50), sizes=(50, 100))
    page = markdown(compared(first, second), "en")
    assert row(page, "100", "2", "50.00 %", "missing", "missing", "missing", "missing", "missing", "missing", "missing")
    command = "mlflow run . --env-manager local -e evaluate -P kl_beta=0.12 -P sizes=50,100 -P shots=2"
    assert row(page, "0.12", "1", "100/2", command)


def test_why_policies_pick_the_same_in_words():
    reason = IdenticalPicks(rule="same_order", leading=3, moved=0.044, median=0.19, tightest=0.0014)
    assert (
        Wording("en")
        .explain(reason)
        .endswith("while the closest two of the first 3 were 0.19 apart in the median question and 0.0014 in the tightest one")
    )
    small = IdenticalPicks(rule="small_pool", pool_size=4, shots=3)
    assert Wording("zh").explain(small) == "候选池太小：4 个候选几乎无法选出 3 个"
    same = PickOverlap(first="epoch 1", second="epoch 2", shots=2, ordered=1.0, unordered=1.0, reason=reason)
    beside = PickOverlap(first="start", second="epoch 1", shots=2, ordered=0.905, unordered=0.95)
    page = markdown(compared(run(0.12, right(60), right(60), overlap=(same, beside))), "zh")
    assert "| 0.12 | 1 / 2 | 1/1 | Shot 2 100.0% | 1 个配置的正确率完全相同；示例选择：logits 的顺序没有改变" in page
    assert "### KL_BETA=0.12：任意两个 checkpoint" in page
    assert "| epoch 1 / epoch 2 | 2 | 100.0% | 100.0% | logits 的顺序没有改变" in page
    assert "| start / epoch 1 | 2 | 90.5% | 95.0% |  |" in page


def test_more_than_two_betas_get_a_curve_a_ranking_and_tests_against_the_best():
    facts = compared(*(run(b, right(n), selection=s) for b, n, s in ((0.05, 90, 40.0), (0.12, 60, 70.0), (0.3, 30, 50.0))))
    figures = draw_figures(facts)
    page = markdown(facts, "en", figures)
    assert "beta_curve.png" in figures
    assert row(page, "1", "0.12", "1", "70.00 %", "60.00 %", "[50.00, 70.00]", "0.01", "m version 7 (alias kl-0.12)")
    assert page.index("Accuracy of KL_BETA=0.05 minus accuracy of KL_BETA=0.12") < page.index("Accuracy of KL_BETA=0.3 minus")


def test_only_what_is_registered_is_called_so():
    facts = compared(run(0.12, right(40), registered=None), run(0.15, right(60)))
    for language, best, registered, line in (
        ("en", "KL_BETA=0.12 epoch 1 (best, not registered)", "KL_BETA=0.15 epoch 1 (registered)", "is not registered"),
        ("zh", "KL_BETA=0.12 Epoch 1（最佳，未注册）", "KL_BETA=0.15 Epoch 1（已注册）", "未注册"),
    ):
        page = markdown(facts, language, draw_figures(facts))
        assert best in page
        assert registered in page
        first, second = (run_line for run_line in summary(facts, language).splitlines() if run_line.startswith("* "))
        assert first.endswith(line)
        assert "7" in second


def test_three_betas_from_elsewhere_are_compared_at_their_last_epoch_in_common():
    runs = [
        {"kl_beta": beta, "epochs": [{"epoch": e, "accuracy": {"200": {"1": value - 1 + e}}} for e in (1, 2)]}
        for beta, value in ((0.05, 40.0), (0.12, 51.0), (0.3, 60.0))
    ]
    facts = compare(results_of({"unit": "percent", "runs": runs}), {}, seed=0)
    assert [(row.run, row.label, row.points, row.primary) for row in facts.differences] == [
        ("0.05", 2, -20.0, True), ("0.12", 2, -9.0, True),
    ]  # fmt: skip
    page = markdown(facts, "en", draw_figures(facts))
    assert "The intervals are a bound instead" in page
    assert "sign-flip" not in page  # a bound is told instead
    assert "| 200 | 1 | 61.00 % | 41.00 % | -20.00 | ⬇️ significant |" in page
    assert "| 200 | 1 | 61.00 % | 52.00 % | -9.00 | not significant |" in page  # error sqrt((61 * 39 + 52 * 48) / 200) = 4.9
    assert row(page, "1", "0.3", "2", "not stated", "61.00 %", "not stated", "missing", "not registered")


def test_questions_and_answers_are_escaped():
    samples = {1000 + i: sample(1000 + i, f"<img src=x onerror=alert({i})> | [a](b)?", "<b>") for i in range(100)}
    facts = compared(run(0.12, right(60)), run(0.15, right(40)), items=Items(samples, {10: samples[1000]}))
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
    images = [link for link in parser.links if not link.startswith("#")]
    assert len(images) == len(figures) == 4
    assert all(link.startswith("data:image/png;base64,") for link in images)
    assert {link.removeprefix("#") for link in parser.links if link not in images} == set(re.findall(r' id="(\w+)"', page))
    assert f'<html lang="{language}">' in page
    assert WORDS[language]["percent"].format(value="58.80") in page


@pytest.mark.slow
def test_fifty_betas_of_three_epochs():
    rng = np.random.default_rng(0)
    pairs = [run(round(0.01 * i, 2), *(rng.integers(0, 2, 100).astype(float) for _ in range(3))) for i in range(1, 51)]
    facts = compared(*pairs)
    page = html(facts, "en", draw_figures(facts))
    assert len([row for row in facts.differences if row.primary]) == 49
    assert page.count("<h4>KL_BETA=0.5: accuracy</h4>") == 3


def test_what_is_seen_first():
    """The verdict, the choice and the table at the largest size stand before the first folded section."""
    runs = (
        LinkedRun(name="evaluation run of beta 0.12", run_id="e1"),
        LinkedRun(name="other", run_id="e2", url="http://h/#/e2"),
    )
    origin = {"created_at": "2026-11-27 13:00 UTC", "git_commit": "0123456789abcdef", "mlflow_runs": runs}
    facts = compared(run(0.12, right(60), git_commit="fedcba9876543210"), run(0.15, right(40))).model_copy(update=origin)
    top, rest = markdown(facts, "en", draw_figures(facts)).split("**Sections:**")
    assert top.split("\n\n")[1] == (
        "2026-11-27 13:00 UTC · git commit 0123456789 · trained at git commit fedcba9876 · data set mini · VLM mini · "
        "evaluation run of beta 0.12: e1 · [other](http://h/#/e2)"
    )
    assert f"**Verdict:** **{verdict(facts, 'en')}**" in top
    assert f"**Choice of KL_BETA:** {choice(facts, 'en')}" in top
    assert choice(facts, "en").startswith("KL_BETA=0.12. It is significantly better than KL_BETA=0.15")
    assert row(top, "Strongest baseline", "30.00 % zero-shot")
    (gain, _) = facts.against_strongest
    low, high = (f"{end:+.2f}" for end in gain.interval)
    assert row(top, "KL_BETA=0.12, epoch 1", f"60.00 % +30.00 ⬆️ [{low}, {high}]")
    assert "(intervals.png)" in top
    assert rest.count("](#") == rest.count('<a id="')
    page = html(facts, "en", draw_figures(facts))
    assert '<a href="http://h/#/e2">other</a>' in page
    assert page.index("It is significantly better") < page.index("<details>")


def test_a_gain_that_is_not_significant_has_no_arrow():
    facts = compared(run(0.12, right(31)), run(0.15, right(10)))  # zero-shot is right on 30 of 100
    gains = {gain.run: gain for gain in facts.against_strongest}
    assert (gains["0.12"].significant, gains["0.15"].significant) == (False, True)
    top = markdown(facts, "en").split("**Sections:**")[0]
    assert row(top, "KL_BETA=0.12, epoch 1", "31.00 % +1.00 [0.00, +3.00]")
    assert "10.00 % -20.00 ⬇️ [" in top


def test_baselines_that_differ_between_runs_are_shown_for_each():
    first = run(0.12, right(60), baselines={"zero-shot": {100: {0: 20.0}}})
    top = markdown(compared(first, run(0.15, right(40))), "en")
    assert row(top, "Strongest baseline beside KL_BETA=0.12", "20.00 % zero-shot")
    assert row(top, "Strongest baseline beside KL_BETA=0.15", "30.00 % zero-shot")


def test_epochs_that_were_not_evaluated_are_named():
    result, records = run(0.12, right(60))
    more = [result.epochs[0].model_copy(update={"epoch": number, "accuracy": {}}) for number in (2, 3)]
    facts = compared((result.model_copy(update={"epochs": (*result.epochs, *more)}), records), run(0.15, right(40)))
    page = markdown(facts, "en")
    sentence = "Trained but not evaluated, so of unknown accuracy: epochs 2 and 3 of KL_BETA=0.12."
    assert sentence in page.split("**Sections:**")[0]
    assert (
        "- KL_BETA=0.12: GRPO epoch 1 evaluated; 1 is the best one on the selection questions; epochs 2 and 3 trained but not"
        in page
    )
    assert "- KL_BETA=0.15: GRPO epoch 1 evaluated; 1 is the best one on the selection questions\n" in page
    assert row(page, "3", "0.5", "5", "missing", "0.01", "0.9", "missing", "0.12")  # its metrics
    assert "Accuracy at GRPO epoch 2" not in page
    assert "100/2" not in page  # nothing to be filled
    assert "Trained but not evaluated" not in markdown(compared(run(0.12, right(60))), "en")


def test_overlaps_are_listed_where_they_are_large_and_counted_elsewhere():
    rows = [
        PickOverlap(first="epoch 1", second=f"epoch {number}", shots=2, ordered=share, unordered=share)
        for number, share in ((2, 0.95), (3, 0.9), (4, 0.2), (5, 0.45))
    ]
    page = markdown(compared(run(0.12, right(60), overlap=rows)), "en")
    section = page[page.index("### KL_BETA=0.12: any two checkpoints") :]
    assert re.findall(r"\| (epoch \d / epoch \d) \|", section) == ["epoch 1 / epoch 2", "epoch 1 / epoch 3"]
    assert "two checkpoints that are not listed: 2. There, 20.0 % to 45.0 % of the questions have the same picks" in section


def test_pairs_of_epochs_that_have_little_in_common_are_counted():
    page = markdown(compared(run(0.12, right(40), right(60))), "en")
    section = page[page.index("## Epochs compared with each other") :]
    assert section.split("\n\n")[1].startswith("Pairs of epochs that are not listed: 1. There,")


def test_examples_show_images_answers_and_demonstrations(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    samples = {1000: sample(1000, "what colour?", "red", tmp_path / "red.png")}
    items = Items(samples, {10: sample(10, "which colour?", "blue", tmp_path / "red.png")})
    facts = compared(run(0.12, right(1)), run(0.15, right(0)), items=items)
    page = html(facts, "en", pictures(facts.examples, items))
    section = page[page.index('id="examples"') :]
    assert section.count("data:image/jpeg;base64,") == 3  # the question's, and the first demonstration of both betas
    assert "1000: what colour?<br>right: red (9) and z (1)" in section
    assert "KL_BETA=0.12 answered “a” (100.00 %)" in section
    assert "KL_BETA=0.15 answered “a” (0.00 %)" in section
    text = markdown(facts, "en")
    card = text[text.index("**1000: what colour? right: red (9) and z (1)**") :].splitlines()[2:8]
    assert card == [
        "- KL_BETA=0.12 answered “a” (100.00 %)", "  - which colour? answer: blue", "  - 11",
        "- KL_BETA=0.15 answered “a” (0.00 %)", "  - which colour? answer: blue", "  - 12",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.0, "< 0.001"), (9.9e-4, "< 0.001"), (0.001, "0.001"), (0.04969, "0.0497"), (1.0, "1")]
)
def test_a_p_value_is_never_zero(p_value, text):
    assert Wording("en").p_value(p_value) == text
    assert Wording("zh").p_equals(p_value) == (f"p {text}" if "<" in text else f"p = {text}")


@pytest.mark.parametrize(
    ("counts", "text"),
    [((1,), "1 shot"), ((2,), "2 shots"), ((0,), "0 shots"), ((1, 2, 4), "1, 2 and 4 shots"), ((1, 2), "1 and 2 shots")],
)
def test_shots_are_counted(counts, text):
    assert Wording("en").shots(*counts) == text


def test_no_difference_is_in_percent():
    facts = compared(run(0.12, right(60), right(20)), run(0.15, right(40), right(40)))
    for language in ("en", "zh"):
        page = markdown(facts, language)
        assert not re.search(r"[+-]\d+\.\d\d ?%", page)
        assert re.search(r"\| ⬆️ (significant|显著) \|", page)


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
    {"kl_beta": st.sampled_from([None, 0, 0.05, 0.12, 0.15]), "epochs": st.lists(epochs, min_size=1, max_size=3)},
    optional={
        "label": st.sampled_from(["a", "b $x$", "方案", "{run}"]),
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
    return [markdown(facts, language, figures), html(facts, language, figures), summary(facts, language)]


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
