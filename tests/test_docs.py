"""The documentation leads somewhere: its links, the files and modules that it names, and what its first pages must mention."""

import re
from pathlib import Path

import pytest
import yaml

import lever_mlflow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "lever_mlflow/mini/MODEL_CARD.md")),
    *sorted(DOCS.glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TOP_FOLDERS = ("benchmarks", "data_checks", "docs", "entrypoints", "lever_mlflow", "tests")


def prose(page):
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def named_paths(page):
    """The files that a page names in backticks: in a top folder of the repository, or a script anywhere."""
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for word in code.split():
            if re.fullmatch(rf"({'|'.join(TOP_FOLDERS)})/[\w./*-]*|[\w.*-]+/[\w./*-]*\.py", word):
                yield word


def exists(name, page):
    """Whether a named file is there, seen from the repository, the package or the page; ``*`` stands for any name."""
    return any(any(base.glob(name.rstrip("/"))) for base in (ROOT, ROOT / "lever_mlflow", page.parent))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    page = ROOT / name
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_named_files_exist(name):
    page = ROOT / name
    assert [path for path in named_paths(page) if not exists(path, page)] == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_modules_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    modules = re.findall(rf"(?:-m|from|import) ((?:{'|'.join(TOP_FOLDERS)})(?:\.\w+)*)", text)
    assert [module for module in modules if not is_module(module)] == []


def is_module(name):
    """Whether a dotted name is a module or a package of this repository."""
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_checks_see_what_they_check(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n\n[x](y.md#z) `lever_mlflow/no.py` `docs/*.md a/b.py`\n\n```\n[in](code)\n```\n")
    assert links(page) == ["y.md#z"]
    assert anchors(page) == {"a-b-c"}
    assert list(named_paths(page)) == ["lever_mlflow/no.py", "docs/*.md", "a/b.py"]
    assert [exists(path, page) for path in named_paths(page)] == [False, True, False]


def test_first_steps_mention_every_entry_point():
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "first-steps.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == list(entry_points)


def test_readme_links_to_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md") if "://" not in link}
    assert {page for page in PAGES if page.name != "README.md"} <= linked


def test_glossary_defines_every_reward_mode():
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    from lever_mlflow.settings import REWARD_MODES

    assert [mode for mode in REWARD_MODES if f"`{mode}`" not in glossary] == []


def test_citation_states_the_version_and_the_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lever_mlflow.__version__
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")


def named_tests(page):
    """The tests that a page names: (file, function or nothing); a name that begins with ``::`` is of the file before it."""
    file = ""
    for name in re.findall(r"`([\w/]*(?:\.py)?(?:::\w+)?)`", prose(page)):
        before, _, function = name.partition("::")
        if before.endswith(".py") or function:
            file = before or file
            yield file, function


@pytest.mark.parametrize("name", ["robustness.md"])
def test_tests_that_a_page_names_are_there(name):
    named = list(named_tests(DOCS / name))
    assert len(named) > 20
    for file, function in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in text, f"{file}::{function}"
