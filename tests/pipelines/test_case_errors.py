"""Mistakes in a user's own case, through the command line: case, file, line and what to do; never "a mistake in the program"."""

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


LOADS = {
    "syntax error": (_code("schema.py", 'label="sold"', 'label="sold'), ("schema.py, line 7: SyntaxError",)),
    "import error": (_code("schema.py", "import Categorical", "import Kategorical"), ("schema.py, line 3: ImportError", "Kategorical")),
    "no schema": (lambda root: (root / "shop" / "schema.py").unlink(), ("schema.py is missing",)),
    "no FIELDS": (_code("schema.py", "FIELDS =", "FELDER ="), ("schema.py declares no FIELDS",)),
    "fields of another case": (_code("schema.py", 'case="shop"', 'case="desk"'), ("schema.py", "the fields of the case desk")),
    "parameters of another case": (_code("params.yaml", "case: shop", "case: desk"), ("params.yaml says case: desk", "the case shop")),
    "typo": (_code("params.yaml", "epochs:", "epoch:"), ("params.yaml", "train.epoch")),
    "not UTF-8": (lambda root: (root / "shop" / "params.yaml").write_bytes(b"case: caf\xe9"), ("params.yaml, line 1", "UTF-8")),
    "no source": (lambda root: (root / "shop" / "source.py").unlink(), ("source.py is missing",)),
    "syntax error in the source": (_code("source.py", "def rows(", "def rows"), ("source.py, line 14: SyntaxError",)),
    "no rows": (_code("source.py", "def rows", "def lines"), ("source.py has no rows(source, window, params)",)),
    "rows of other arguments": (
        _code("source.py", "rows(source, window, params)", "rows(source)"),
        ("source.py has rows(source)", "rows(source, window, params)"),
    ),
    "a module that is not there": (_code("source.py", "import polars", "import polarz"), ("source.py, line 3: ModuleNotFoundError", "polarz")),
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
