"""Mistakes that a case outside of the tree can have, one a case, all of them in one installation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests import shop


class Mistake(NamedTuple):
    """What somebody does to a whole case: ``makes(folder)``. ``words`` are in what is said of it."""

    makes: Callable[[Path], object]
    words: str


def _text(file: str, before: str, after: str) -> Callable[[Path], object]:
    return lambda folder: shop.edit(folder / file, (before, after))


def _lost(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def _bytes(file: str, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(text)


def _folder(file: str) -> Callable[[Path], object]:
    def makes(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return makes


def _twice(folder: Path) -> None:
    """Another of the same name in the second folder of PERENNIAL_CASES."""
    shutil.copytree(folder, folder.parent.parent / "others" / folder.name)


def _loop(folder: Path) -> None:
    (folder / "schema.py").unlink()
    (folder / "schema.py").symlink_to("schema.py")


MISTAKES: Mapping[str, Mistake] = {
    "shop_twice": Mistake(_twice, "there are two cases of this name"),
    "shop-dash": Mistake(lambda _folder: None, "is no name for a case"),
    "encoder": Mistake(lambda _folder: None, "has the name of a part of Perennial"),
    "desk": Mistake(lambda _folder: None, "there are two cases of this name"),
    "shop_copy": Mistake(_text("params.yaml", "case: shop_copy", "case: desk"), "says case: desk"),
    "shop_copied": Mistake(
        _text("schema.py", 'case="shop_copied"', 'case="desk"'), "declares the fields of the case desk"
    ),
    "shop_syntax": Mistake(_text("schema.py", 'label="sold"', 'label="sold'), "schema.py, line 7: SyntaxError"),
    "shop_source_syntax": Mistake(_text("source.py", "def rows(", "def rows("[:-1]), "source.py, line 14: SyntaxError"),
    "shop_model_syntax": Mistake(_bytes("model.py", b"def build(:\n"), "model.py, line 1: SyntaxError"),
    "shop_yaml": Mistake(_bytes("params.yaml", b"case: [\n"), "params.yaml"),
    "shop_latin": Mistake(_bytes("params.yaml", b"case: caf\xe9\n"), "UTF-8"),
    "shop_nul": Mistake(_bytes("schema.py", b"FIELDS = 1\0\n"), "schema.py"),
    "shop_empty": Mistake(_bytes("params.yaml", b""), "params.yaml"),
    "shop_no_params": Mistake(_lost("params.yaml"), "params.yaml"),
    "shop_no_schema": Mistake(_lost("schema.py"), "schema.py is missing"),
    "shop_no_source": Mistake(_lost("source.py"), "source.py is missing"),
    "shop_no_model": Mistake(_lost("model.py"), "model.py is missing"),
    "shop_params_folder": Mistake(_folder("params.yaml"), "params.yaml"),
    "shop_schema_folder": Mistake(_folder("schema.py"), "schema.py"),
    "shop_loop": Mistake(_loop, "schema.py is missing"),
    "shop_raises": Mistake(_text("schema.py", "FIELDS = ", "1 / 0\nFIELDS = "), "line 5: ZeroDivisionError"),
    "shop_exits": Mistake(_text("schema.py", "FIELDS = ", "raise SystemExit(3)\nFIELDS = "), "SystemExit"),
    "shop_newer_field": Mistake(
        _text("schema.py", "import Categorical,", "import Ordinal, Categorical,"),
        "or install the version of Perennial that the case was written for",
    ),
    "shop_newer_argument": Mistake(
        _text("schema.py", 'label="sold"', 'label="sold", cohort="week"'), "unexpected keyword argument 'cohort'"
    ),
    "shop_newer_params": Mistake(_text("params.yaml", "case: ", "federation: {peers: 3}\ncase: "), "federation"),
    "shop_newer_module": Mistake(
        _text("source.py", "from pipelines.cases.sources", "from pipelines.cases.streams"),
        "there is no module pipelines.cases.streams",
    ),
}
"""By the case's name. `desk` is one in the tree, too; `encoder` is a module of Perennial beside the cases."""


def install(folder: Path, patch: object) -> None:
    """Put all of them, the whole case ``shop_whole`` and a folder that is not there into PERENNIAL_CASES."""
    mine, others = folder / "mine", folder / "others"
    others.mkdir(parents=True)
    for name, mistake in MISTAKES.items():
        mistake.makes(shop.write(mine, name))
    shop.write(mine, "shop_whole")
    patch.setenv("PERENNIAL_CASES", os.pathsep.join(map(str, (mine, others, folder / "lost"))))  # type: ignore[attr-defined]
