"""Which cases there are, which of them cannot work, and why: one answer for everybody who asks."""

import os
import subprocess
import sys

import pytest

from pipelines import cases
from pipelines.cases import surveying
from pipelines.errors import ConfigError
from tests import shop


@pytest.fixture
def root(tmp_path):
    """Two whole cases, shop and desk."""
    with shop.installed(tmp_path / "cases") as root:
        shop.write(root)
        shop.write(root, "desk")
        yield root


def problems():
    """What is wrong, by case."""
    return {case.name: case.problem for case in surveying.survey()}


def test_whole_cases_have_parameters_fields_and_no_problem(root):
    """A whole case comes with its parameters and its fields."""
    found = {case.name: case for case in surveying.survey()}
    assert problems() == {"desk": "", "shop": ""}
    assert (found["shop"].params.case, found["shop"].fields.case) == ("shop", "shop")


def _written(name, text):
    return lambda folder: (folder / name).write_text(text)


def _changed(name, before, after):
    return lambda folder: shop.edit(folder / name, (before, after))


def _derived(features):
    """A case with a derived feature and this features.py."""

    def breaks(folder):
        (folder / "features.py").write_text(features)
        shop.edit(folder / "schema.py", ('label="sold",', 'label="sold", derived=(Numeric("each", missing=True),),'))

    return breaks


BREAKAGES = {
    "syntax error in the schema": (
        _changed("schema.py", 'label="sold"', 'label="sold'),
        "schema.py, line 7: SyntaxError",
    ),
    "syntax error in the source": (
        _changed("source.py", "def rows(", "def rows("[:-1]),
        "source.py, line 14: SyntaxError",
    ),
    "syntax error in a helper": (_written("tools.py", "\n\nif\n"), "tools.py, line 3: SyntaxError"),
    "schema that raises": (_changed("schema.py", '"red"', "red"), "schema.py, line 8: NameError: name 'red'"),
    "schema that leaves": (_written("schema.py", "raise SystemExit(3)"), "schema.py, line 1: SystemExit"),
    "module that is not installed": (
        _changed("source.py", "import polars as pl", "import polarz as pl"),
        "source.py, line 3: there is no module polarz",
    ),
    "helper that is not there": (
        _changed("source.py", "shop.schema", "shop.shema"),
        "there is no module pipelines.cases.shop.shema",
    ),
    "no schema": (lambda folder: (folder / "schema.py").unlink(), "pipelines/cases/shop/schema.py is missing"),
    "no source": (lambda folder: (folder / "source.py").unlink(), "pipelines/cases/shop/source.py is missing"),
    "no model": (lambda folder: (folder / "model.py").unlink(), "pipelines/cases/shop/model.py is missing"),
    "no parameters": (lambda folder: (folder / "params.yaml").unlink(), "params.yaml does not exist"),
    "no FIELDS": (_changed("schema.py", "FIELDS =", "FELDER ="), "declares no FIELDS"),
    "no build": (_written("model.py", "def built(params, fields): ..."), "model.py has no build(params, fields)"),
    "no resolve": (_changed("source.py", "def resolve", "def solve"), "source.py has no resolve(settings, params)"),
    "no rows": (_changed("source.py", "def rows", "def lines"), "source.py has no rows(source, window, params)"),
    "typo in the parameters": (_changed("params.yaml", "epochs:", "epoch:"), "train.epoch"),
    "no YAML": (_changed("params.yaml", "case: shop", "case: [shop"), "is not YAML"),
    "byte that is not UTF-8": (
        lambda folder: (folder / "params.yaml").write_bytes(b"case: shop\nabout: caf\xe9\n"),
        "line 2: byte 0xe9 is not UTF-8",
    ),
    "schema that is not UTF-8": (lambda folder: (folder / "schema.py").write_bytes(b"# caf\xe9\n"), "schema.py"),
    "YAML that is no data": (_written("params.yaml", "&a {case: *a}"), "params.yaml"),
    "another case's parameters": (
        _changed("params.yaml", "case: shop", "case: desk"),
        "says case: desk, but it stands for the case shop",
    ),
    "another case's fields": (
        _changed("schema.py", 'case="shop"', 'case="desk"'),
        "declares the fields of the case desk",
    ),
    "derived features without expressions": (
        _changed("schema.py", 'label="sold",', 'label="sold", derived=(Numeric("each", missing=True),),'),
        "features.py is missing: write it, the fields declare derived features",
    ),
    "expressions without derived features": (
        _written("features.py", 'FEATURES = {"each": None}'),
        "schema.py declares no derived features",
    ),
    "expressions of another name": (_derived("SHARES = {}"), "features.py has no FEATURES"),
    "expressions that do not parse": (_derived("FEATURES = {"), "features.py, line 1: SyntaxError"),
    "name with a space": (lambda folder: folder.rename(folder.with_name("shop copy")), "rename the folder"),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_case_is_told_alone(root, kind):
    """Whatever is wrong with a case is said in one line, with its file, and the other case is as whole as before."""
    breaks, words = BREAKAGES[kind]
    breaks(root / "shop")
    found = problems()
    assert found.pop("desk") == ""
    [problem] = found.values()
    assert words in problem
    assert "\n" not in problem
    assert problems()["desk"] == ""


def test_all_that_is_wrong_is_said_at_once(root):
    """A case with several mistakes names each."""
    (root / "shop" / "model.py").unlink()
    shop.edit(root / "shop" / "params.yaml", ("epochs:", "epoch:"))
    problem = problems()["shop"]
    assert "model.py is missing" in problem
    assert "train.epoch" in problem


def test_what_is_no_case_is_left_alone(root):
    """Stray files, hidden folders and folders without a case's files are no cases; a case needs no __init__.py."""
    (root / "notes.txt").write_text("remember")
    (root / "old.zip").write_bytes(b"PK")
    for folder in ("__pycache__", ".ipynb_checkpoints", "scratch"):
        (root / folder).mkdir()
        (root / folder / "readme.md").write_text("nothing")
    (root / "desk" / "__init__.py").unlink()
    (root / "gone").symlink_to(root / "nowhere")
    assert problems() == {"desk": "", "shop": ""}


def test_a_file_for_features_to_come_is_no_mistake(root):
    """An empty dictionary of expressions is what a new case begins with."""
    (root / "shop" / "features.py").write_text('"""None yet."""\n\nFEATURES = {}\n')
    assert problems() == {"desk": "", "shop": ""}


def test_a_mended_schema_is_read_anew(root):
    """A schema that changes under a running process is followed, within a second and a length too, and in a helper."""
    path = root / "shop" / "schema.py"

    def colours():
        return next(case for case in surveying.survey() if case.name == "shop").fields.fields[0].values

    assert colours() == ("red", "blue")
    os.utime(path, (1e9, 1e9))
    assert colours() == ("red", "blue")
    for new in ("gray", "pink"):
        shop.edit(path, ('"blue"' if new == "gray" else '"gray"', f'"{new}"'))
        os.utime(path, (1e9, 1e9))
        assert colours() == ("red", new)
    shop.edit(path, ("Fields(", "Fields(("))
    assert "SyntaxError" in problems()["shop"]
    shop.edit(path, ("Fields((", "Fields("))
    assert colours() == ("red", "pink")
    (root / "shop" / "colours.py").write_text("COLOURS = ('white',)\n")
    shop.edit(
        path,
        ('("red", "pink")', "COLOURS"),
        ("from pipelines", "from pipelines.cases.shop.colours import COLOURS\nfrom pipelines"),
    )
    assert colours() == ("white",)
    (root / "shop" / "colours.py").write_text("COLOURS = ('white', 'black')\n")
    assert colours() == ("white", "black")


def test_cases_come_and_go(root):
    """A folder that is added is a case, one that is removed is none, and one that comes again is read anew."""
    assert set(problems()) == {"desk", "shop"}
    (root / "shop").rename(root.parent / "aside")
    assert set(problems()) == {"desk"}
    shop.write(root, "lamp")
    (root.parent / "aside").rename(root / "shop")
    shop.edit(root / "shop" / "schema.py", ('label="sold"', 'label="bought"'))
    found = {case.name: case for case in surveying.survey()}
    assert set(found) == {"desk", "lamp", "shop"}
    assert found["shop"].fields.label == "bought"


def test_parameters_from_outside_belong_to_their_case(root, tmp_path, monkeypatch):
    """A file in PERENNIAL_PARAMS_DIR that names another case is refused, naming both; the case's own is followed."""
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    text = (root / "desk" / "params.yaml").read_text()
    (tmp_path / "shop.yaml").write_text(text)
    assert "shop.yaml says case: desk, but it stands for the case shop" in problems()["shop"]
    with pytest.raises(ConfigError, match=r"shop\.yaml says case: desk"):
        cases.load_case("shop")
    (tmp_path / "shop.yaml").write_text(text.replace("case: desk", "case: shop").replace("epochs: 1", "epochs: 2"))
    [found] = [case for case in surveying.survey() if case.name == "shop"]
    assert (found.problem, found.params.train.epochs) == ("", 2)


@pytest.mark.parametrize("half", ["nothing", "params.yaml", "schema.py"])
def test_a_copied_case_is_refused(root, half):
    """A copy under another name is refused, naming both, until its parameters and fields both say its name."""
    copy = root / "lamp"
    copy.mkdir()
    for file in (root / "shop").glob("*.*"):
        (copy / file.name).write_text(file.read_text())
    if half == "params.yaml":
        shop.edit(copy / half, ("case: shop", "case: lamp"))
    if half == "schema.py":
        shop.edit(copy / half, ('case="shop"', 'case="lamp"'))
    assert "lamp" in problems()["lamp"]
    assert "shop" in problems()["lamp"]
    with pytest.raises(ConfigError, match=r"lamp.*shop|shop.*lamp"):
        cases.load_case("lamp")
    for file, name in (("params.yaml", "case: shop"), ("schema.py", 'case="shop"')):
        if file != half:
            shop.edit(copy / file, (name, name.replace("shop", "lamp")))
    assert problems()["lamp"] == ""


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "source",
            "def resolve(settings): ...\ndef rows(source, window, params): ...",
            r"has resolve\(settings\): it is called as resolve\(settings, params\)",
        ),
        ("source", "resolve = rows = 3", r"has no resolve\(settings, params\)"),
        ("model", "1 / 0", "model.py, line 1: ZeroDivisionError: division by zero: mend this line"),
        ("model", "from pipelines.fields import Feilds", "model.py, line 1: ImportError: cannot import name 'Feilds'"),
    ],
)
def test_a_module_that_cannot_be_used_is_said_when_it_is_opened(root, name, text, words):
    """What only an import can tell is told by whoever opens the module: case, file, line, what to do."""
    (root / "shop" / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError, match=words):
        cases.part("shop", name)


def test_the_survey_is_light():
    """Asking for the cases imports none of their sources and models: DAG files and gateway do it all the time."""
    code = "import sys; from pipelines.cases.surveying import survey; assert all(not case.problem for case in survey())"
    heavy = "print([name for name in ('torch', 'polars', 'numpy', 'transformers') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True, cwd=shop.REAL.parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_who_trains_nothing_needs_no_library_of_sources_and_models(root):
    """A library that is not there is a problem of a source where it would train, and none of a gateway's."""
    source = root / "shop" / "source.py"
    source.write_text("import no_such_library\n" + source.read_text())
    assert "there is no module no_such_library" in problems()["shop"]
    assert [case.problem for case in surveying.survey(trains=False)] == ["", ""]
    source.write_text("from pipelines.cases.shop.gone import nothing\n" + source.read_text())
    assert "there is no module pipelines.cases.shop.gone" in next(
        case.problem for case in surveying.survey(trains=False) if case.name == "shop"
    )


def test_derived_features_are_surveyed_without_their_expressions_and_loaded_with_them(root):
    """A survey knows their names from plain data; whoever loads the case gets formulas, or file and feature named."""
    _derived('import polars as pl\n\nFEATURES = {"each": pl.col("price") / pl.col("weight")}\n')(root / "shop")
    _derived('import polars as pl\n\nFEATURES = {"each": pl.col("price").rank()}\n')(root / "desk")
    shop.edit(root / "shop" / "params.yaml", ("ignore: []", "ignore: [each, each.missing]"))
    assert problems() == {"desk": "", "shop": ""}
    surveyed = next(case.fields for case in surveying.survey() if case.name == "shop")
    assert (surveyed.feature_names, surveyed.formulas) == (("colour", "price", "weight", "each"), ())
    loaded = cases.load_fields("shop")
    assert loaded.formulas == (("divide", ("column", "price"), ("column", "weight")),)
    assert loaded.hash == surveyed.hash
    with pytest.raises(ConfigError, match=r"case desk: pipelines/cases/desk/features\.py: each: .*single row"):
        cases.load_fields("desk")
