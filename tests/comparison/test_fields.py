import pytest
from helpers.comparison_samples import compared, right, run


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rl_data": {"digest": "other"}}, "rl_data.digest"),
        ({"config": {"lr": 1e-4, "start": "rce epoch 4"}}, "lr"),
        ({"config": {"lr": 5e-6}}, "start"),  # what one run has and the other has not is a difference
    ],
)
def test_a_confounder_makes_runs_not_comparable_and_the_numbers_stay(change, field):
    facts = compared(run(0.12, right(60)), run(0.15, right(40), **change))
    assert not facts.comparable
    assert field in facts.confounders
    assert facts.findings[0].rule == "not_comparable"
    assert (facts.choice.run, facts.choice.rule) == (None, "not_comparable")
    assert facts.differences[0].points == pytest.approx(20.0)


def test_beta_itself_is_intended_and_the_same_data_may_be_read_elsewhere():
    pairs = [
        run(beta, right(50), config={"training.kl_beta": beta}, rl_data={"digest": "d", "source": f"{beta}.json"})
        for beta in (0.12, 0.15)
    ]
    facts = compared(*pairs)
    assert facts.comparable
    assert {item.field: item.mark for item in facts.fields} == {
        "rl_data.digest": "same",
        "rl_data.source": "same",
        "training.kl_beta": "intended",
        "kl_beta": "intended",
    }
    others = [run(beta, right(50), rl_data={"digest": f"{beta}", "source": f"{beta}.json"}) for beta in (0.12, 0.15)]
    marks = {item.field: item.mark for item in compared(*others).fields}
    assert (marks["rl_data.digest"], marks["rl_data.source"]) == ("confounding", "confounding")
