"""The table of versions, also where somebody has edited their tags."""

from types import SimpleNamespace

from lever_mlflow.registry.listing import ListedVersion, table


def listed(number, **tags):
    return ListedVersion(SimpleNamespace(version=str(number), tags=tags), [], None)


def test_versions_are_ordered_by_beta_and_those_without_a_number_come_last():
    rows = [listed(1, kl_beta="abc"), listed(2, kl_beta="0.15"), listed(3), listed(4, kl_beta="nan"), listed(5, kl_beta="0.12")]
    lines = table("m", rows).splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [["0.12", "5"], ["0.15", "2"], ["abc", "1"], ["-", "3"], ["nan", "4"]]


def test_a_tag_takes_one_line_without_control_characters():
    text = table("m", [listed(1, kl_beta="0.1", gate="pass\n\x1b[2Jforged")])
    assert text.splitlines()[2].split()[-2:] == [r"pass\n\x1b[2Jforged", "-"]
