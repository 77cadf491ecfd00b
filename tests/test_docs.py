"""What the documentation's pages say is what the code says, and the README's links lead somewhere."""

import codeop
import inspect
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

import creduse_core.errors
import creduse_core.models
from creduse import CreduseError, __version__
from creduse._calls import STATUSES
from creduse_core import EVENTS, TRANSITIONS, Kind
from creduse_core.retry import may_retry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_exit_statuses() -> None:
    """The page's table of exit statuses is that of the command."""
    page = DOCS.joinpath("command.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == STATUSES


def test_events() -> None:
    """The page's table of events is that of the code."""
    page = DOCS.joinpath("outcomes.md").read_text(encoding="utf-8")
    cells = r"^\| `(\w+)` \| (.*) \| `(\w+)` \| `(\w+)` \| (\w+) \| (\w+) \|$"
    rows = re.findall(cells, page, re.MULTILINE)
    again = {True: "yes", False: "no"}
    assert rows == [
        (
            event.name,
            event.description,
            str(event.evidence),
            str(event.evidence_with_key),
            *(again[may_retry(event, kind, event.evidence)] for kind in (Kind.READ, Kind.WRITE)),
        )
        for event in EVENTS.values()
    ]


def test_fields() -> None:
    """The page's tables have every field of the results and errors, with its type."""
    page = DOCS.joinpath("reference.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    classes = [
        thing
        for module in (creduse_core.models, creduse_core.errors)
        for thing in vars(module).values()
        if isinstance(thing, type) and thing.__module__ == module.__name__
    ]
    assert len(classes) > 20
    for thing in classes:
        rows = re.findall(
            r"^\| `(\w+)` \| (.+?) \| ", sections.get(thing.__name__, ""), re.MULTILINE
        )
        written = {field: wanted.replace("`", "").replace(" or ", " | ") for field, wanted in rows}
        fields = inspect.get_annotations(thing)
        assert written == {
            field: re.sub(r"\w+\.", "", inspect.formatannotation(kind))
            for field, kind in fields.items()
        }
        assert fields or thing.__name__ in page or not issubclass(thing, CreduseError)


def test_states() -> None:
    """The diagram of a call's states has exactly the moves of the code's table."""
    page = DOCS.joinpath("outcomes.md").read_text(encoding="utf-8")
    arrows = re.findall(r"^    (\w+) --> (\w+): (\w+)$", page, re.MULTILINE)
    assert [
        (before.replace("_", " "), given, after.replace("_", " "))
        for before, after, given in arrows
    ] == [
        (state, given, after)
        for state, inputs in TRANSITIONS.items()
        for given, states in inputs.items()
        for after in states
    ]


def test_decisions() -> None:
    """Each record of a decision has its date and all its parts."""
    page = DOCS.joinpath("design.md").read_text(encoding="utf-8")
    paragraphs = r"\n\n\d{4}-\d\d-\d\d\. .+?\n\n- \*Weighed:\* .+?\n- \*Would change it:\* "
    whole = re.compile(r"^### ([^\n]+)" + paragraphs, re.MULTILINE | re.DOTALL)
    assert whole.findall(page) == re.findall(r"^### (.+)$", page, re.MULTILINE)


def test_links() -> None:
    """The README's links lead to files that exist."""
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https:)([^)#]+)", readme)
    assert links
    assert [link for link in links if not ROOT.joinpath(link).is_file()] == []


def test_links_on_pypi() -> None:
    """PyPI shows the README with links to the repository, at this version's tag, and is else the same."""
    repository = project_urls()["Repository"]
    readme = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    shown = metadata("creduse")["Description"].replace(f"]({repository}/blob/v{__version__}/", "](")
    pictures = repository.replace("github.com", "raw.githubusercontent.com")
    assert shown.replace(f"]({pictures}/v{__version__}/", "](") == readme


def test_page_on_pypi() -> None:
    """PyPI renders the README, and every link and picture on its page has a whole address."""
    markdown = pytest.importorskip("readme_renderer.markdown", reason="only `nox -s wheel` has it")
    page = markdown.render(metadata("creduse")["Description"])
    # Each heading is a link to itself.
    targets = re.findall(r' (?:href|src)="(?!#user-content-)([^"]*)"', page)
    assert len(targets) > 50
    assert [target for target in targets if not target.startswith("https://")] == []


def test_repository() -> None:
    """Every file that names the project's repository names the same one."""
    repository = project_urls()["Repository"]
    assert all(url.startswith(repository) for url in project_urls().values())
    for file in (ROOT / "SECURITY.md", ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml"):
        named = re.findall(r"https://github\.com/[\w-]+/[\w-]+", file.read_text(encoding="utf-8"))
        assert set(named) == {repository}, file


def project_urls() -> dict[str, str]:
    """Return the addresses that the package's metadata has, by their names."""
    return dict(it.split(", ", 1) for it in metadata("creduse").get_all("Project-URL") or ())


def test_examples_can_be_pasted() -> None:
    """The examples of pages that say so can be pasted into Python's prompt, also that of 3.11.

    It needs an empty line after an indented block, and none within one.
    """
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    blocks = [
        block
        for page in pages
        if "start.md#try-what-the-other-pages-show" in page
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ]
    assert len(blocks) > 40
    for block in blocks:
        begun: list[str] = []
        for line in f"{block}\n".split("\n"):
            begun.append(line)
            try:
                whole = codeop.compile_command("\n".join(begun), symbol="single")
            except SyntaxError as error:
                raise AssertionError(line) from error
            if whole is not None:
                begun = []
