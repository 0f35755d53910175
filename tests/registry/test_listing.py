"""The table of versions, also where somebody has edited their tags."""

from types import SimpleNamespace

from lever_mlflow.registry.listing import ListedVersion, table


def listed(number, **tags):
    return ListedVersion(SimpleNamespace(version=str(number), tags=tags), [], None)


def test_versions_are_ordered_by_beta_and_those_of_others_come_last():
    betas = {1: "abc", 2: "0.15", 3: "nan", 5: "0.12"}
    rows = [*(listed(number, kl_beta=beta, epoch="3") for number, beta in betas.items()), listed(4)]
    lines = table("m", rows).splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [["0.12", "5"], ["0.15", "2"], ["-", "1"], ["-", "3"], ["-", "4"]]


def test_a_tag_takes_one_line_without_control_characters():
    text = table("m", [listed(1, kl_beta="0.1", epoch="3", gate="pass\n\x1b[2Jforged")])
    assert text.splitlines()[2].split()[-2:] == [r"pass\n\x1b[2Jforged", "-"]
