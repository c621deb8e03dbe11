"""A small case as somebody writes it, to be put into folders of cases and broken there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines import case_files, cases

REAL = case_files.CASES_ROOT
SCHEMA = '''"""The fields."""

from pipelines.fields import Categorical, Fields, Numeric

FIELDS = Fields(
    case="shop",
    label="sold",
    fields=(Categorical("colour", ("red", "blue")), Numeric("price", 0, 1000), Numeric("weight", 0, 1000)),
)
'''
SOURCE = '''"""The rows lie in one CSV."""

import polars as pl

from pipelines.cases.shop.schema import FIELDS
from pipelines.cases.sources import Source, canonical


def resolve(settings, params):
    """Where the rows are."""
    return Source(name="shop", kind="real", why="a file", notice="none", path=settings.data_dir / "shop.csv")


def rows(source, window, params):
    """The rows of a window."""
    frame = pl.read_csv(source.path)
    moment = pl.col("event_time").str.to_datetime(time_zone="UTC")
    frame = frame.with_columns(moment, pl.col("price") * 1.0, pl.col("weight") * 1.0, pl.col("sold").cast(pl.Int8))
    return canonical(frame, FIELDS, window, params)
'''
MODEL = '''"""The network of the tabular cases."""

from pipelines.cases.tabular import build

__all__ = ["build"]
'''
ROWS = 400
FIRST = datetime(2024, 2, 1, tzinfo=UTC)
"""When the first of them happens."""


def write(root: Path, name: str = "shop") -> Path:
    """A whole case of this name below ``root``; returns its folder."""
    folder = root / name
    folder.mkdir(parents=True)
    params = yaml.safe_load((REAL / "bank" / "variants" / "network" / "bank.yaml").read_text())
    params |= {"case": name, "period": ["2024-01-01T00:00:00Z", None], "label_delay_days": 1, "replay": None}
    params["dataset"] |= {"min_rows": 100, "fallback_rows": 200, "min_holdout": 50}
    params["train"] |= {"ranks": 1, "epochs": 1}
    params["gate"] |= {"slices": ["colour"], "min_differing": 50}
    params["drift"]["ignore"] = []
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "__init__.py").write_text('"""A case."""\n')
    for part, text in (("schema", SCHEMA), ("source", SOURCE), ("model", MODEL)):
        (folder / f"{part}.py").write_text(text.replace('"shop"', f'"{name}"').replace("cases.shop", f"cases.{name}"))
    (folder / "profile.json").write_text(
        '{"price": {"loc": 500.0, "scale": 0.002}, "weight": {"loc": 500.0, "scale": 0.002}}'
    )
    return folder


def write_rows(path: Path, rows: int = ROWS) -> Path:
    """A CSV of ``rows`` rows, one an hour from the first of February 2024 on; what is dear is sold less."""
    rng = np.random.default_rng(0)
    price = rng.integers(0, 1000, rows)
    sold = (rng.random(rows) * 1000 > price).astype(int)
    lines = ["id,event_time,colour,price,weight,sold"]
    for row in range(rows):
        moment = f"2024-02-{1 + row // 24:02d}T{row % 24:02d}:00:00Z"
        lines.append(f"shop-{row},{moment},{('red', 'blue')[row % 2]},{price[row]}.5,{row}.25,{sold[row]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace pieces of a file, each of which must be there."""
    text = path.read_text()
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path.write_text(text)


@contextmanager
def installed(root: Path) -> Iterator[Path]:
    """Let the cases below ``root`` be those that there are; what was imported of them is forgotten afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    _forget(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case_files, "CASES_ROOT", root)
        patch.setattr(cases, "__path__", [str(root), *cases.__path__])
        yield root
    _forget(root)


def _forget(root: Path) -> None:
    """What a process has imported of other folders of the same name, and of these."""
    here = {path.name for path in root.iterdir()} if root.exists() else set()  # a test may have taken it away
    for name in [name for name in sys.modules if name.startswith("pipelines.cases.")]:
        own = name.split(".")[2]
        if own in here or own.startswith(("shop", "desk", "lamp", "trips", "parcels")):
            del sys.modules[name]
    for path in root.rglob("__pycache__"):
        shutil.rmtree(path)
