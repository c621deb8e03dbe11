"""Mistakes in a user's own case, on the command line: case, file, line, what to do; no "mistake in the program"."""

import json

import pytest

from pipelines import cli
from tests import shop

OURS = "this is a mistake in the program"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The whole cases shop and desk, shop's rows, and an empty state folder."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_DATA_DIR", str(tmp_path))
    shop.write_rows(tmp_path / "shop.csv")
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.write(root, name)
        yield root


def run(capfd, *steps, case="shop"):
    """Run steps by hand; the last one's exit code and the last line of what it said."""
    for step in steps:
        code = cli.main([step, "--case", case, "--as-of", "2024-02-16"])
    out, err = capfd.readouterr()
    return code, (err if code else out).splitlines()[-1]


def test_a_whole_case_works(root, capfd):
    """The case that is broken below is one that works: its rows are read, checked and learned from."""
    code, said = run(capfd, "ingest", "validate", "dataset", "train")
    assert (code, json.loads(said)["facts"]["rows"] > 100) == (0, True)


def _code(file, before, after):
    return lambda root: shop.edit(root / "shop" / file, (before, after))


def _column(name, changed):
    """Every value of a column of the rows as ``changed(number, value)``."""

    def breaks(root):
        path = root.parent / "shop.csv"
        head, *lines = (line.split(",") for line in path.read_text().splitlines())
        for number, line in enumerate(lines):
            line[head.index(name)] = changed(number, line[head.index(name)])
        path.write_text("\n".join(",".join(line) for line in [head, *lines]))

    return breaks


RETURNS = "return canonical(frame, FIELDS, window, params)"
RUNS = {
    "text label": (_column("sold", lambda _, value: ("no", "yes")[int(value)]), "line 18", "'sold'"),
    "one text label": (
        _column("sold", lambda number, value: "yes" if number == 200 else value),
        "line 16",
        "could not parse `yes`",
    ),
    "decimal comma": (_column("price", lambda _, value: f'"{value.replace(".", ",")}"'), "line 18", "'price'"),
    "missing file": (lambda root: (root.parent / "shop.csv").unlink(), "line 16", "shop.csv"),
    "empty file": (lambda root: (root.parent / "shop.csv").write_text(""), "line 16", "empty CSV"),
    "folder of data not given": (_code("source.py", "settings.data_dir /", "None /"), "line 11", "TypeError"),
    "exception in rows": (
        _code("source.py", "frame = pl.read_csv", "raise RuntimeError('no\\nwarehouse') #"),
        "line 16",
        "RuntimeError: no warehouse",
    ),
    "resolve that returns nothing": (
        _code("source.py", "return Source", "Source"),
        "line 9",
        "resolve returned a NoneType",
    ),
    "rows that return nothing": (
        _code("source.py", RETURNS, ""),
        "line 14",
        "rows returned what cannot be used: shop: rows came as NoneType",
    ),
    "rows as pandas": (
        _code("source.py", RETURNS, f"{RETURNS}.to_pandas()"),
        "line 14",
        "rows returned what cannot be used: shop: rows came as DataFrame",
    ),
    "rows without a column": (
        _code("source.py", RETURNS, f"{RETURNS}.drop('price')"),
        "line 14",
        "rows returned what cannot be used: shop: column(s) price missing",
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_an_error_over_the_cases_data_names_its_line(root, kind, capfd):
    """Whatever a case's source does wrong is one line with case, file, line and what to do, and exit code 1."""
    breaks, line, words = RUNS[kind]
    breaks(root)
    code, said = run(capfd, "ingest")
    assert code == 1
    assert said.startswith(f"CaseError: case shop: pipelines/cases/shop/source.py, {line}: ")
    assert words in said
    assert any(
        advice in said
        for advice in ("mend this line, or the data that it reads", ": return a ", ": give back a ", ": rename or add ")
    )
    assert OURS not in said
    assert len(said) < 1000


def test_what_canonical_refuses_names_the_line_that_called_it(root, capfd):
    """A column that is missing in the data is named, with the file and the line of the case that asked for it."""
    shop.edit(root.parent / "shop.csv", ("colour", "color"))
    code, said = run(capfd, "ingest")
    assert code == 1
    assert "column(s) colour missing" in said
    assert said.endswith("(pipelines/cases/shop/source.py, line 19)")
    assert OURS not in said


NETWORK = """from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, categorical, numeric):
        return self.layer(numeric).WRONG(1)


def build(params, fields):
    return Network()
"""
MODELS = {
    "exception in build": (
        shop.MODEL + "\n\ndef build(params, fields):\n    return fields.sizes\n",
        1,
        "line 9: AttributeError",
    ),
    "build that returns nothing": (
        "def build(params, fields): ...",
        1,
        "build returned NoneType: return a torch.nn.Module",
    ),
    "no build": ("def make(params, fields): ...", 2, "has no build(params, fields)"),
    "no model": (None, 2, "is missing"),
    "exception in forward": (NETWORK, 1, "line 10: AttributeError: 'Tensor' object has no attribute 'WRONG'"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A state folder in which the dataset of shop is made."""
    base = tmp_path_factory.mktemp("prepared")
    shop.write_rows(base / "shop.csv")
    with shop.installed(base / "cases") as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_HOME", str(base / "home"))
        patch.setenv("PERENNIAL_DATA_DIR", str(base))
        shop.write(root)
        assert {
            cli.main([step, "--case", "shop", "--as-of", "2024-02-16"]) for step in ("ingest", "validate", "dataset")
        } == {0}
    return base / "home"


@pytest.mark.parametrize(("kind", "ranks"), [*((kind, 1) for kind in MODELS), ("exception in forward", 2)])
def test_an_error_in_the_cases_model_names_its_line(root, prepared, monkeypatch, kind, ranks, capfd):
    """Whatever a case's model does wrong is told with case, file and line, also where a rank of its own saw it."""
    text, exit_code, words = MODELS[kind]
    monkeypatch.setenv("PERENNIAL_HOME", str(prepared))
    path = root / "shop" / "model.py"
    path.unlink() if text is None else path.write_text(text)
    shop.edit(root / "shop" / "params.yaml", ("ranks: 1", f"ranks: {ranks}"))
    # Ranks are fresh interpreters here: they have to find the same cases.
    (root.parent / "sitecustomize.py").write_text(
        "from pathlib import Path\nfrom pipelines import case_files, cases\ncase_files.CASES_ROOT = "
        f"Path({str(root)!r})\ncases.__path__.insert(0, {str(root)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(root.parent))
    code, said = run(capfd, "train")
    assert code == exit_code
    assert "case shop: pipelines/cases/shop/model.py" in said
    assert words in said
    assert OURS not in said


def test_our_own_mistakes_stay_ours(root, monkeypatch, capfd):
    """An error that no case's code had a part in is still called a mistake in the program."""
    monkeypatch.setattr("pipelines.steps.ingest.dataset.training_window", lambda *_: 1 / 0)
    code, said = run(capfd, "ingest")
    assert (code, OURS in said) == (1, True)


LOADS = {
    "syntax error": (_code("schema.py", 'label="sold"', 'label="sold'), ("schema.py, line 7: SyntaxError",)),
    "import error": (
        _code("schema.py", "import Categorical", "import Kategorical"),
        ("schema.py, line 3: ImportError", "Kategorical"),
    ),
    "no schema": (lambda root: (root / "shop" / "schema.py").unlink(), ("schema.py is missing",)),
    "no FIELDS": (_code("schema.py", "FIELDS =", "FELDER ="), ("schema.py declares no FIELDS",)),
    "fields of another case": (
        _code("schema.py", 'case="shop"', 'case="desk"'),
        ("schema.py", "the fields of the case desk"),
    ),
    "parameters of another case": (
        _code("params.yaml", "case: shop", "case: desk"),
        ("params.yaml says case: desk", "the case shop"),
    ),
    "typo": (_code("params.yaml", "epochs:", "epoch:"), ("params.yaml", "train.epoch")),
    "not UTF-8": (
        lambda root: (root / "shop" / "params.yaml").write_bytes(b"case: caf\xe9"),
        ("params.yaml, line 1", "UTF-8"),
    ),
    "no source": (lambda root: (root / "shop" / "source.py").unlink(), ("source.py is missing",)),
    "syntax error in the source": (_code("source.py", "def rows(", "def rows"), ("source.py, line 14: SyntaxError",)),
    "no rows": (_code("source.py", "def rows", "def lines"), ("source.py has no rows(source, window, params)",)),
    "rows of other arguments": (
        _code("source.py", "rows(source, window, params)", "rows(source)"),
        ("source.py has rows(source)", "rows(source, window, params)"),
    ),
    "a module that is not there": (
        _code("source.py", "import polars", "import polarz"),
        ("source.py, line 3: ModuleNotFoundError", "polarz"),
    ),
}


@pytest.mark.parametrize("kind", LOADS)
def test_a_broken_case_is_one_clear_line(root, kind, capfd):
    """A case whose files cannot be used is told in one line with exit code 2, and the case beside it works."""
    breaks, words = LOADS[kind]
    breaks(root)
    code, said = run(capfd, "ingest")
    assert code == 2
    assert all(word in said for word in ("shop", *words)), said
    assert OURS not in said
    shop.write_rows(root.parent / "shop.csv")
    assert run(capfd, "ingest", case="desk")[0] == 0


@pytest.mark.parametrize(
    "breaks", [_code("schema.py", "FIELDS =", "FELDER ="), _code("params.yaml", "epochs:", "epoch:")]
)
def test_metrics_give_the_others_and_name_the_broken_case(root, breaks, capfd):
    """One broken case does not empty `metrics`.

    The others have their series, answer and a series name the broken one.
    """
    breaks(root)
    assert cli.main(["metrics"]) == 0
    answer = json.loads(capfd.readouterr().out)
    text = (root.parent / "home" / "metrics.prom").read_text()
    assert answer["broken"].keys() == {"shop"}
    assert 'perennial_case_broken{case="shop"} 1.0' in text
    assert 'perennial_case_broken{case="desk"} 0.0' in text
    assert 'perennial_case_live{case="desk"} 0.0' in text
