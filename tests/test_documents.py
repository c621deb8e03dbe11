"""README.md, ARCHITECTURE.md and docs/: short enough to be read, and they name what exists."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from pipelines.cli import build_parser
from pipelines.settings import Settings
from serving.gateway.settings import Bounds

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
WAY_IN = (ROOT / "ARCHITECTURE.md").read_text().partition("\n## The way in\n")[2].partition("\n## ")[0]
ROOMS = (
    "benchmarks/",
    "compose/",
    "dags/",
    "docs/",
    "embedded/",
    "perennial/airflow/",
    "pipelines/",
    "plugins/",
    "serving/",
    "tests/",
)
MADE = ("compose/secrets",)
"""What pages name and a checkout does not hold: `make secrets` makes it."""


def _links(text: str) -> list[str]:
    """Where a page's links and pictures lead inside the project."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", target)]


def _anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _named(text: str) -> list[tuple[str, str]]:
    """The files and folders of the project that a page names in code, each with the name that stands after a colon."""
    said = [*re.findall(r"`((?:[^`\n]|\n(?!\s*\n))+)`", text), *re.findall(r"(?m)^    .+$", text)]
    words = [word.strip("\"';,()=") for part in said for word in part.split()]
    own = [word for word in words if word.startswith(ROOMS) or ("/" in word and word.endswith(".py"))]
    return [(path, name) for path, _, name in (word.partition(":") for word in own if not re.search(r"[<$]", word))]


def _definitions(path: Path) -> dict[str, int]:
    """The functions, classes, methods and values of a file, with their numbers of lines, decorators included."""
    found: dict[str, int] = {}

    def enter(nodes: list[ast.stmt], prefix: str = "") -> None:
        for node in nodes:
            first, names = node.lineno, []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            found.update({f"{prefix}{name}": (node.end_lineno or first) - first + 1 for name in names})
            if isinstance(node, ast.ClassDef):
                enter(node.body, f"{node.name}.")

    enter(ast.parse(path.read_text()).body)
    return found


def _reading() -> Iterator[tuple[str, int]]:
    """What the way in asks to be read, and its number of lines."""
    for path, name in _named(WAY_IN):
        file = ROOT / path
        yield (f"{path}:{name}", _definitions(file)[name]) if name else (path, len(file.read_text().splitlines()))


def test_the_readme_is_short():
    """README.md has at most 150 lines, none longer than a table's row needs."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_architecture_is_short():
    """ARCHITECTURE.md has at most 1,000 words."""
    assert len((ROOT / "ARCHITECTURE.md").read_text().split()) <= 1_000


def test_links_lead_somewhere():
    """Every relative link leads to a file, and its anchor to a heading of it."""
    broken = []
    for page in PAGES:
        for link in _links(page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_named_files_exist():
    """Every file and folder of the project that a page names is there, and so is what it names of a file."""
    broken = []
    for page in PAGES:
        for path, name in _named(page.read_text()):
            found = [ROOT] if path.startswith(MADE) else list(ROOT.glob(path.rstrip("/")))
            if not found or (name and name not in _definitions(found[0])):
                broken.append(f"{page.relative_to(ROOT)}: {path}{':' if name else ''}{name}")
    assert broken == []


def test_named_targets_and_modules_exist():
    """Every target of make and every module to be run with python -m that a page names is there."""
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    broken = []
    for page in PAGES:
        text = page.read_text()
        named = re.findall(r"(?m)(?:`|^    )make ([a-z-]+)", text)
        broken += [f"make {target}" for target in named if target not in targets]
        for module in re.findall(r"python -m ([\w.]+)", text):
            path = ROOT / module.replace(".", "/")
            if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
                broken.append(f"python -m {module}")
    assert broken == []


def test_named_commands_exist():
    """Every command of the command line that a page names is there."""
    commands = set(re.findall(r"(?m)^    (\w+)", build_parser().format_help()))
    named = {name for page in PAGES for name in re.findall(r"python -m pipelines ([a-z]+)", page.read_text())}
    assert named <= commands


def test_named_settings_exist():
    """Every variable of ours that a page names is a setting, or is read by name somewhere in the code."""
    settings = {*Settings.model_fields, *(f"gateway_{name}" for name in Bounds.model_fields)}
    known = {f"PERENNIAL_{name.upper()}{of}" for name in settings for of in ("", "_FILE")}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            known.update(re.findall(r"PERENNIAL_\w+", path.read_text()))
    # PERENNIAL_X stands for any of them, and ports are read by the names of their services.
    named = {name for page in PAGES for name in re.findall(r"PERENNIAL_(?!X\b|X_|PORT_)\w*[A-Z]\b", page.read_text())}
    assert named <= known


def test_ci_does_what_the_readme_says():
    """The CI's script runs one command, and the README has it."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    [command] = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert f"\n    {command} " in (ROOT / "README.md").read_text()


def test_a_decision_says_context_decision_and_consequence():
    """A decision is a page with its number and three headings, none of them empty."""
    assert DECISIONS
    for page in DECISIONS:
        title, *parts = re.split(r"(?m)^## ", page.read_text())
        assert title.startswith(f"# {int(page.stem[:3])}. "), page.name
        assert [part.partition("\n")[0] for part in parts] == ["Context", "Decision", "Consequence"], page.name
        assert all(part.partition("\n")[2].strip() for part in parts), page.name


def test_the_index_has_every_decision_once():
    """Decisions are numbered without a gap, and the index links each of them under one subject, by its title."""
    assert [int(page.stem[:3]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = re.findall(r"(?m)^- \[(.+)\]\((.+)\)$", (ROOT / "docs" / "decisions" / "README.md").read_text())
    titles = [(page.read_text().partition("\n")[0].removeprefix("# "), page.name) for page in DECISIONS]
    assert sorted(listed, key=lambda entry: entry[1]) == titles


def test_the_way_in_takes_twenty_minutes():
    """The way in names the operator, the commit and one full step, and asks for at most 1,000 lines of code."""
    reading = dict(_reading())
    operator = "perennial/airflow/operators.py:StepOperator"
    commit = "pipelines/storage.py:commit"
    assert {operator, commit, "pipelines/steps/gate.py"} <= set(reading)
    assert sum(reading.values()) <= 1_000, reading


def test_the_rooms_are_those_of_the_import_rule():
    """ARCHITECTURE.md lists the rooms of pipelines/ floor by floor, as import-linter holds them."""
    listed = (ROOT / "ARCHITECTURE.md").read_text().partition("\n1. `cli`")[2].partition("\n\n")[0]
    listed = re.split(r"(?m)^\d+\. ", f"1. `cli`{listed}")[1:]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [floors] = [contract["layers"] for contract in settings["contracts"] if contract.get("containers") == ["pipelines"]]
    rooms = [set(re.findall(r"(?:^|- |; )`(\w+)`:", floor)) for floor in listed]
    assert rooms == [set(re.findall(r"\w+", floor)) for floor in floors]
