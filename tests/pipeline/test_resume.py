"""What is removed once an interrupted training has been gone on from: only what that training left in the cache folder."""

import pytest

from lever_mlflow.pipeline.resume import UnsentEpochs

FORMER, OTHER, OWN = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def unsent(tmp_path):
    for name in (FORMER, OTHER, OWN):
        (tmp_path / "cache" / "unsent" / name / "state-0001").mkdir(parents=True)
    return UnsentEpochs(tmp_path / "cache" / "unsent" / OWN, "key")


def left(unsent):
    return sorted(path.name for path in unsent.folder.parent.iterdir())


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_former_run_is_removed_by_id_or_folder(unsent, by_folder):
    unsent.remove_former(str(unsent.folder.parent / FORMER) if by_folder else FORMER)
    assert left(unsent) == [OTHER, OWN]


@pytest.mark.parametrize("source", [".", "..", "unsent", "my-epochs", "../.."])
def test_no_other_folder_is_removed(unsent, tmp_path, monkeypatch, source):
    """A relative name of the folder in which the run left its epochs once led to the folder of all runs, or to the cache."""
    monkeypatch.chdir(unsent.folder.parent)
    unsent.remove_former(source)
    assert left(unsent) == [FORMER, OTHER, OWN]


def test_a_folder_that_the_user_copied_elsewhere_stays(unsent, tmp_path):
    copy = tmp_path / "elsewhere" / FORMER
    copy.mkdir(parents=True)
    unsent.remove_former(str(copy))
    assert copy.is_dir()
    assert left(unsent) == [FORMER, OTHER, OWN]
