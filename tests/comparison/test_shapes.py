"""Results of every shape that people compare: betas, variants, samplers, curves, runs without a beta, a single run."""

import copy
import json

import pytest

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import choice, html, markdown, opening, verdict
from lever_mlflow.comparison.results import results_of
from lever_mlflow.comparison.terminal import summary
from lever_mlflow.exceptions import DataError, ParameterError

V2 = {"v2": {"800": {"1": 48.5, "2": 47.75}}}  # a baseline


def entry(accuracy=None, epoch=1, metrics=None, **fields):
    """A run of a results file with one epoch."""
    return {"epochs": [{"epoch": epoch, "accuracy": accuracy or {}, **(metrics or {})}], **fields}


def content(*runs, **fields):
    return {"unit": "percent", "dataset": "OKVQA", "vlm": "Qwen", "runs": list(runs), **fields}


def compared(*runs, vary=()):
    return compare(results_of(content(*runs)), {}, seed=0, vary=vary)


def labels(facts):
    return [run.label for run in facts.runs]


def page(facts, language="en"):
    return markdown(facts, language, draw_figures(facts))


def lines_of(facts, language="en"):
    """The lines of the terminal as words."""
    return [line.split() for line in summary(facts, language).splitlines()]


VARIANTS = [
    entry({"800": {"1": first, "2": second}}, kl_beta=0.1, config={"selector": name, "lr": 5e-6}, baselines=V2)
    for name, first, second in (("plan5", 50.15, 48.25), ("V4-1", 50.15, 48.0), ("V4-6", 40.0, 39.5), ("STOP", 49.5, 48.75))
]


def test_two_betas_with_confounders_and_sizes_of_which_they_share_one():
    first = entry({"200": {"1": 57.0}}, kl_beta=0.12, config={"start_checkpoint": "RCE epoch 5"})
    second = entry(
        {"100": {"1": 63.0}, "200": {"1": 58.5}, "800": {"1": 49.75}},
        kl_beta=0.15,
        config={"start_checkpoint": "RCE epoch 2"},
        baselines={"v2": {"200": {"1": 57.25}, "800": {"1": 48.5}}},
    )
    facts = compared(first, second)
    assert (facts.varied, facts.by_beta, labels(facts), facts.reference) == (("kl_beta",), True, ["0.12", "0.15"], "0.15")
    assert facts.claimed_size == 200
    assert lines_of(facts)[0][-2:] == ["200", "questions"]
    assert ["beta", "0.12", "epoch", "1", "-", "57.00"] in lines_of(facts)
    assert ["beta", "0.15", "epoch", "1", "*", "-", "58.50"] in lines_of(facts)
    assert [(row.run, row.size, row.points) for row in facts.against_strongest] == [("0.15", 200, 1.25)]
    assert verdict(facts, "en") == (
        "Betas 0.12 and 0.15 cannot be compared, because their runs also differ in start_checkpoint."
    )
    assert "The runs differ in start too: RCE epoch 5 (KL_BETA=0.12) and RCE epoch 2 (KL_BETA=0.15). " in page(facts)
    assert opening(facts, "en")[2].startswith("The runs differ in start too")


def test_without_a_size_that_all_have_the_largest_compared_one_is_shown():
    runs = [entry({size: {"1": value}}, kl_beta=b) for b, size, value in ((0.1, "100", 50.0), (0.2, "200", 50.0))]
    facts = compared(*runs, entry({"200": {"1": 40.0}}, kl_beta=0.3))
    assert (facts.shared_size, facts.claimed_size) == (0, 200)


def test_of_three_runs_the_size_that_all_have_is_shown_first():
    both, small = {"100": {"1": 50.0}, "200": {"1": 40.0}}, {"100": {"1": 60.0}}
    facts = compared(*(entry(cells, kl_beta=b) for b, cells in ((0.1, both), (0.2, small), (0.3, both))))
    assert facts.claimed_size == 100
    assert ["beta", "0.2", "epoch", "1", "-", "60.00"] in lines_of(facts)
    assert [row.accuracy for row in facts.ranking] == [60.0, 50.0, 50.0]


def test_all_fields_of_what_is_meant_to_differ_are_intended():
    runs = [
        entry(
            {"100": {"1": 50.0}},
            kl_beta=0.1,
            config={
                "training.seed": n,
                "training_seed": n,
                "start": f"rce epoch {n}",
                "start_digest": f"d{n}",
                "gate": f"g{n}",
            },
            rl_data={"source": f"{n}.json", "n_queries": n},
        )
        for n in (1, 2)
    ]
    facts = compared(*runs, vary=["start", "rl_data", "seed"])
    assert (facts.comparable, labels(facts)) == (True, ["rce epoch 1", "rce epoch 2"])
    facts = compared(*runs, vary=["rl_data.source", "start", "training.seed"])
    assert facts.confounders == ["rl_data.n_queries", "training_seed", "gate"]  # a full name is of one field


def test_two_betas_whose_every_cell_is_equal_are_a_finding_of_their_own():
    cells = {"800": {"1": 49.75, "2": 48.25, "3": 47.5, "4": 47.5}}
    facts = compared(entry(cells, epoch=9, kl_beta=0.12), entry(cells, epoch=42, kl_beta=0.15))
    (finding,) = facts.identical
    assert (finding.runs, finding.cells, finding.picks) == (("0.12", "0.15"), 4, None)
    assert (facts.choice.run, facts.choice.rule) == (None, "identical")
    assert "KL_BETA=0.12 and 0.15 are identical in every cell: did the evaluation use their checkpoints?" in verdict(
        facts, "en"
    )
    assert choice(facts, "en") == (
        "None, because the betas are identical in every cell. First find out whether the evaluation used their checkpoints."
    )
    text = page(facts)
    assert "KL_BETA=0.12 and 0.15 are identical in every cell: all 4 accuracies are equal" in text
    assert "Check that each run was evaluated with its own checkpoint" in text
    assert "KL_BETA=0.12、0.15 在每个配置上都完全相同：4 个正确率全部相等" in page(facts, "zh")
    assert [(row.label, row.points) for row in facts.differences] == [("best", 0.0)] * 4  # the only epochs, of other numbers


def test_of_five_betas_those_that_are_identical_are_named_together():
    cells, other = {"200": {"1": 57.0, "2": 56.0}}, {"200": {"1": 58.5, "2": 56.0}}
    facts = compared(*(entry(other if beta == 0.15 else cells, kl_beta=beta) for beta in (0.12, 0.145, 0.15, 0.155, 0.18)))
    (finding,) = facts.identical
    assert finding.runs == ("0.12", "0.145", "0.155", "0.18")
    assert (facts.choice.run, facts.choice.rule) == ("0.18", "closest")  # the others differ


def test_one_equal_cell_is_no_finding():
    facts = compared(*(entry({"200": {"1": 57.0}}, kl_beta=beta) for beta in (0.12, 0.15)))
    assert facts.identical == []
    assert facts.choice.rule == "closest"


def test_two_plans_at_one_beta_that_differ_in_two_fields():
    plans = [
        entry({"800": {"1": accuracy}}, kl_beta=0.1, config={"plan": plan, "lr": lr, "grpo_epochs": 50}, baselines=V2)
        for plan, lr, accuracy in ((5, 5e-6, 50.15), (6, 5e-5, 49.9))
    ]
    facts = compared(*plans)
    assert (facts.varied, facts.by_beta, labels(facts)) == ((), False, ["plan 5", "plan 6"])
    assert verdict(facts, "en") == (
        "plan 5 and plan 6 differ in plan and lr, and it was not said which of these is meant to differ, so there is no "
        "verdict. Say it by vary=, such as vary=plan; whatever else differs is then named as confounding."
    )
    assert choice(facts, "zh") == "不作选择：没有指明要比较的是什么。"
    assert facts.findings[0].rule == "undecided"
    assert "| lr | 5e-06 | 5e-05 | CONFOUNDING |" in page(facts)

    facts = compared(*plans, vary=["lr"])
    assert (labels(facts), facts.reference) == (["lr 5e-06", "lr 5e-05"], "lr 5e-06")
    assert verdict(facts, "en") == (
        "lr 5e-06 and lr 5e-05 cannot be compared, because they do not only differ in lr but also in plan."
    )
    assert choice(facts, "en") == "None, because the runs cannot be compared. Compare runs that differ in nothing but lr."

    facts = compared(*plans, vary=["lr", "plan"])
    assert facts.comparable
    assert verdict(facts, "en") == (
        "lr 5e-06 and lr 5e-05 can be compared. On these 800 questions, no difference from lr 5e-06 is significant at any "
        "number of shots."
    )
    assert choice(facts, "en") == "None. No other run is shown to be better or worse than lr 5e-06."


def test_variants_at_one_beta():
    facts = compared(*VARIANTS)
    assert (facts.varied, facts.by_beta, facts.comparable) == (("selector",), False, True)
    assert labels(facts) == ["plan5", "V4-1", "V4-6", "STOP"]
    assert (facts.reference, facts.choice.rule) == ("plan5", "none")
    points = {row.run: row.points for row in facts.differences if row.shots == 1}
    assert points == {"V4-1": 0.0, "V4-6": pytest.approx(-10.15), "STOP": pytest.approx(-0.65)}
    # the errors are sqrt((40 * 60 + 50.15 * 49.85) / 800) = 2.48 points at 1 shot, and 2.47 at 2 shots for 8.75 points
    assert verdict(facts, "en") == (
        "plan5, V4-1, V4-6 and STOP can be compared. On these 800 questions, plan5 is better than V4-6 by 10.15 points at 1 "
        "shot and plan5 is better than V4-6 by 8.75 points at 2 shots (tested with an upper bound on the error, because there "
        "are no records of single questions; corrected for 6 comparisons)."
    )
    assert choice(facts, "en") == "None. No other run is shown to be better than plan5. Shown to be worse: V4-6."
    assert choice(facts, "zh") == "不作选择：没有证据表明其它方案优于 plan5。显著更差的有：V4-6。"
    gains = {(row.run, row.shots): row.points for row in facts.against_strongest}
    assert gains["plan5", 1] == pytest.approx(1.65)  # the only evaluated epoch takes the place of the best one
    assert len(gains) == 8
    text = page(facts)
    assert text.startswith("# Accuracy comparison: plan5 vs V4-1 vs V4-6 vs STOP\n")
    assert "**Choice of selector:** None." in text
    assert "| V4-6, epoch 1 | 40.00 % -8.50 ⬇️ [" in text
    assert "##### Accuracy of V4-6 minus accuracy of plan5" in text
    assert "### V4-6 minus plan5" in text
    assert "| 1 | plan5 | 1 | not stated | 49.20 % | not stated | missing | not registered |" in text
    assert "(ranking.png)" in text
    assert "No training metrics are known of these runs." in text
    assert "KL_BETA" not in text
    assert " beta" not in text.lower().replace("kl_beta", "")
    assert ["V4-6", "epoch", "1", "*", "-", "40.00", "39.50"] in lines_of(facts)
    chinese = page(facts, "zh")
    assert "KL_BETA" not in chinese
    assert "**selector 选择建议：** " in chinese


def test_a_variant_that_wins_is_chosen():
    better = entry({"800": {"1": 60.0, "2": 59.0}}, kl_beta=0.1, config={"selector": "V5", "lr": 5e-6})
    facts = compared(*VARIANTS, better)
    assert (facts.choice.run, facts.choice.rule) == ("V5", "better")
    assert choice(facts, "en") == (
        "V5. It is significantly better than plan5 at some number of shots and significantly worse at none."
    )
    worse = [entry({"800": {"1": 20.0}}, config={"selector": name}) for name in ("a", "b")]
    facts = compared(entry({"800": {"1": 50.0}}, config={"selector": "c"}), *worse)
    assert choice(facts, "en") == "c. Every other run is significantly worse at some number of shots."


def test_variants_as_baselines_of_one_run():
    facts = compared(entry({"800": {"1": 50.0, "2": 48.5}}, kl_beta=0.1, baselines={**V2, "V4-1": {"800": {"1": 50.25}}}))
    assert (labels(facts), facts.by_beta, facts.choice.rule) == (["0.1"], True, "alone")
    gains = [(row.shots, row.baseline, row.points) for row in facts.against_strongest]
    assert gains == [(1, "V4-1", -0.25), (2, "v2", 0.75)]
    assert verdict(facts, "en") == "There is only one beta, 0.1, so there is nothing to compare it with."


@pytest.mark.parametrize("beta", [{}, {"kl_beta": None}])
def test_runs_without_a_beta(beta):
    runs = [entry({"800": {"1": value}}, config={"version": name}, **beta) for name, value in (("v0", 51.0), ("v2_lora", 49.0))]
    facts = compared(*runs)
    assert [run.kl_beta for run in facts.runs] == [None, None]
    assert (labels(facts), facts.varied) == (["v0", "v2_lora"], ("version",))
    text = page(facts)
    assert "| v2_lora, epoch 1 | 49.00 % |" in text
    assert "kl_beta" not in text
    assert "mlflow run" not in text  # no command makes these runs
    assert verdict(compared(runs[0]), "en") == "There is only one run, run 1, so there is nothing to compare it with."


def test_one_run_of_another_data_set_with_a_part_of_its_baseline():
    facts = compared(
        entry({"1000": {"1": 74.5, "2": 72.0}}, kl_beta=0.1, baselines={"V2": {"1000": {"1": 69.0}}}, best_epoch=1)
    )
    assert [(row.shots, row.points) for row in facts.against_strongest] == [(1, 5.5)]
    assert "| KL_BETA=0.1, epoch 1 | 1000 | 74.50 % |" in page(facts)
    assert "registered)" not in page(facts)


SAMPLERS = [
    entry(
        {"5046": {"1": one, "4": 24.0, "6": 24.5, "8": eight}},
        kl_beta=beta,
        config={"sampler": name},
    )
    for beta, name, one, eight in ((0, "RandSampler", 23.0, 24.75), (1, "TextSim", 20.0, 24.0), (2, "ImgSim", 21.0, 24.0))
]


def test_samplers_with_up_to_eight_shots():
    facts = compared(*SAMPLERS)
    assert labels(facts) == ["0", "1", "2"]
    assert "| KL_BETA=0, epoch 1 | 23.00 % | 24.00 % | 24.50 % | 24.75 % |" in page(facts)
    hint = "RandSampler (KL_BETA=0), TextSim (KL_BETA=1) and ImgSim (KL_BETA=2). If sampler is what you compare"
    assert hint in page(facts)
    named = compared(*SAMPLERS, vary=["sampler"])
    assert (labels(named), named.confounders) == (["RandSampler", "TextSim", "ImgSim"], ["kl_beta"])
    varied = compared(*SAMPLERS, vary=["sampler", "kl_beta"])
    # 3 points at 1 shot: error sqrt((23 * 77 + 20 * 80) / 5046) = 0.82 points
    assert "RandSampler is better than TextSim by 3.00 points at 1 shot" in verdict(varied, "en")
    without = [{name: value for name, value in run.items() if name != "kl_beta"} for run in SAMPLERS]
    assert compared(*without).varied == ("sampler",)


def test_curves_alone_give_curves():
    metrics = [{"kl": 0.08, "val_loss": 8.0, "kl_loss": 0.0095}, {"kl": 0.05, "val_loss": 7.9, "kl_loss": 0.0065}]
    runs = [
        {
            "kl_beta": beta,
            "epochs": [{"epoch": epoch, "accuracy": {}, **row} for epoch, row in zip((1, 50), metrics, strict=True)],
        }
        for beta in (0.12, 0.15)
    ]
    facts = compared(*runs)
    assert (facts.choice.rule, facts.sizes, facts.claimed_size) == ("no_accuracy", (), 0)
    text = page(facts)
    assert text.startswith("# GRPO training curves (KL_BETA=0.12 vs 0.15)\n")
    assert verdict(facts, "en") == "No accuracy is known of betas 0.12 and 0.15; the report shows their training curves."
    top, rest = text.split("**Sections:**")
    assert "(training_curves.png)" in top
    assert [key for key in ("#accuracy", "#baselines", "#best_model", "#curve)") if key in rest] == []
    assert "0 questions" not in text
    assert "| 50 | missing | 7.9 | missing | 0.05 | missing | missing | 0.12 | 0.0065 |" in text
    assert "falls throughout, from 0.08 to 0.05 (-37.5 %)" in text
    assert summary(facts, "en").splitlines() == [
        f"Verdict: {verdict(facts, 'en')}",
        f"Choice of KL_BETA: {choice(facts, 'en')}",
    ]
    nameless = compared(*({**run, "kl_beta": None, "label": f"L{i}"} for i, run in enumerate(runs)))
    assert page(nameless, "zh").startswith("# 训练曲线报告：L0 vs L1\n")


def test_given_labels_name_the_runs_and_betas_are_then_no_names():
    runs = [entry({"100": {"1": 50.0}}, kl_beta=beta, label=label) for beta, label in ((0.12, "ours $x$"), (0.15, "theirs"))]
    facts = compared(*runs)
    assert (labels(facts), facts.by_beta, facts.varied) == (["ours $x$", "theirs"], False, ("kl_beta",))
    assert "**Choice of kl_beta:** " in page(facts)
    same = [entry({"100": {"1": value}}, label=label) for value, label in ((50.0, "a"), (60.0, "b"))]
    facts = compared(*same)
    assert (facts.comparable, facts.varied, labels(facts)) == (True, (), ["a", "b"])
    assert "The runs do not differ in any field that they state." in page(facts)


def test_labels_tell_of_as_little_as_possible():
    def labels_of(*configs, vary=()):
        return labels(compared(*(entry({"1": {"1": 0.0}}, kl_beta=0.1, **config) for config in configs), vary=vary))

    assert labels_of({"config": {"a.rounds": 1}}, {"config": {"a.rounds": 3}}) == ["rounds 1", "rounds 3"]
    assert labels_of({"config": {"frozen": True}}, {"config": {"frozen": False}}) == ["frozen true", "frozen false"]
    assert labels_of({"config": {"note": "5"}}, {"config": {"note": "6"}}) == ["note 5", "note 6"]
    assert labels_of(*({"config": {"lr": lr, "x": x}} for lr, x in ((0.1, 1), (0.1, 2), (0.2, 1))), vary=["lr"]) == [
        "lr 0.1, x 1", "lr 0.1, x 2", "lr 0.2, x 1",
    ]  # fmt: skip
    start = [
        {"start_digest": digest * 8, "start": words} for digest, words in (("0123", "rce epoch 4"), ("4567", "rce epoch 5"))
    ]
    assert labels_of(*({"config": row} for row in start)) == ["rce epoch 4", "rce epoch 5"]  # words before digests
    assert labels_of(*({"config": {"start_digest": row["start_digest"]}} for row in start)) == [
        "start_digest 01230123", "start_digest 45674567",
    ]  # fmt: skip
    long = ["/models/" + "x" * 60 + end for end in "ab"]
    assert labels_of(*({"config": {"vlm": path}} for path in long)) == [f"…{path[-39:]}" for path in long]
    assert labels_of({"config": {}}, {"config": {"lr": 1}}) == ["lr not stated", "lr 1"]
    assert labels_of({"rl_data": {"source": "a.json", "n_queries": 8}}, {"rl_data": {"source": "b.json", "n_queries": 9}}) == [
        "a.json", "b.json",
    ]  # fmt: skip


def test_betas_of_which_two_are_equal_are_told_apart_by_more():
    runs = [entry({"1": {"1": 0.0}}, kl_beta=b, config={"lr": lr}) for b, lr in ((0.1, 1), (0.1, 2), (0.2, 1))]
    facts = compared(*runs)
    assert (facts.varied, facts.by_beta) == (("kl_beta",), False)
    assert labels(facts) == ["kl_beta 0.1, lr 1", "kl_beta 0.1, lr 2", "kl_beta 0.2, lr 1"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["size"], "vary=size: no run has such a field; the runs differ in: selector; they also have: lr, kl_beta"),
        (["lr"], "vary=lr: it is the same in all runs, so there is nothing to compare; the runs differ in: selector"),
        (["kl_beta"], "vary=kl_beta: it is the same in all runs, so there is nothing to compare; the runs differ in: selector"),
        (["selector", ""], "vary=: no run has such a field; the runs differ in: selector; they also have: lr, kl_beta"),
    ],
)
def test_what_is_asked_for_must_differ(vary, message):
    with pytest.raises(ParameterError) as error:
        compared(*VARIANTS, vary=vary)
    assert str(error.value) == message


def test_what_not_every_run_states_is_not_compared():
    runs = [entry({"1": {"1": 0.0}}, kl_beta=b, config=config) for b, config in ((0.1, {"lr": 1}), (0.2, {}))]
    with pytest.raises(ParameterError, match="vary=lr: not every run states it, so there is nothing to compare"):
        compared(*runs, vary=["lr"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda runs: runs[1].update(config=runs[0]["config"]),
            "runs: two have kl_beta 0.1 and the same config and rl_data; give",
        ),
        (lambda runs: [run.update(kl_beta=None, config={}) for run in runs], "runs: two have no kl_beta and the same config"),
        (lambda runs: [run.update(label="same") for run in runs], "runs: should hold each label once, holds 'same' 4 times"),
        (lambda runs: runs[0].update(label=5), r"runs\[0\].label: 5 should be a valid string"),
        (lambda runs: runs[0].update(label=" "), r"runs\[0\].label: ' ' should be a text of 1 to 60 characters in one line"),
        (lambda runs: runs[0].update(label="a\nb"), r"runs\[0\].label: 'a\\nb' should be a text of 1 to 60 characters"),
        (
            lambda runs: runs[0].update(label="a" * 61),
            r"runs\[0\].label: .* should be a text of 1 to 60 characters in one line",
        ),
        (lambda runs: runs[0].update(kl_beta="0.1"), r"runs\[0\].kl_beta: '0.1' should be a valid number"),
        (lambda runs: runs[0].update(kl_beta=float("nan")), r"runs\[0\].kl_beta: nan should be"),
        (lambda runs: runs[0]["epochs"][0].update(kl=float("nan")), r"runs\[0\].epochs\[0\].kl: nan should be a number"),
        (lambda runs: runs[0]["config"].update(lr=float("nan")), r"runs\[0\].config.lr: nan should be a number"),
        (
            lambda runs: runs[1].update(label="plan5"),
            "runs: 2 of them have the label 'plan5'; give each run a label of its own",
        ),
    ],
)
def test_runs_that_cannot_be_told_apart_or_do_not_fit_are_refused(change, message):
    runs = copy.deepcopy(VARIANTS)
    change(runs)
    with pytest.raises(DataError, match=message):
        compared(*runs)


@pytest.mark.parametrize(
    ("runs", "vary"),
    [(VARIANTS, ()), (SAMPLERS, ["sampler"]), (SAMPLERS, ()), (SAMPLERS[:1], ())],
    ids=["variants", "samplers", "betas", "alone"],
)
def test_a_comparison_can_be_read_as_results_again(runs, vary):
    facts = compared(*runs, vary=vary)
    again = compare(results_of(json.loads(facts.model_dump_json())), {}, seed=0, vary=vary)
    assert labels(again) == labels(facts)
    assert markdown(again, "en") == markdown(facts, "en")


def test_labels_are_texts_and_never_markup():
    runs = [entry({"1": {"1": 50.0}}, label=label) for label in ("<b>{run}|$", "[a](b) 方案")]
    facts = compared(*runs)
    page = html(facts, "zh", draw_figures(facts))
    assert "<b>{run}" not in page
    assert "&lt;b&gt;{run}|$" in page
