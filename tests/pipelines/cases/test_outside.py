"""Cases that lie outside of the tree: how they are found, what is said of those that cannot be, and their keys."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from pipelines import case_files, cases, faults
from pipelines.cases.code import code_sha256
from pipelines.cases.surveying import survey
from pipelines.errors import ConfigError
from pipelines.params_file import load_params
from tests import shop


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An empty folder that PERENNIAL_CASES names; the tree has the case desk alone."""
    with shop.installed(tmp_path / "inside") as root:
        shop.write(root, "desk")
        folder = tmp_path / "mine"
        folder.mkdir()
        monkeypatch.setenv("PERENNIAL_CASES", str(folder))
        yield folder


@pytest.fixture
def installs(tmp_path, monkeypatch):
    """Installs a package ``acme_models`` with these entry points in the group of cases; gives its folder."""

    def install(*entries):
        site = tmp_path / "site"
        about = site / "acme_models-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-models\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("\n".join(["[perennial.cases]", *entries]) + "\n")
        package = site / "acme_models"
        package.mkdir()
        (package / "__init__.py").touch()
        monkeypatch.syspath_prepend(site)
        case_files._named.cache_clear()
        return package

    yield install
    case_files._named.cache_clear()
    for name in [name for name in sys.modules if name.startswith("acme_models")]:
        del sys.modules[name]


def problems():
    """What is wrong, by case."""
    return {case.name: case.problem for case in survey()}


def test_a_case_in_a_folder_outside_is_a_case(outside):
    """It has parameters, fields and modules like the others, is read by its name, and its names can be pickled."""
    shop.write(outside)
    assert problems() == {"desk": "", "shop": ""}
    assert (load_params("shop").case, cases.load_fields("shop").case) == ("shop", "shop")
    rows = cases.part("shop", "source").rows
    assert Path(rows.__code__.co_filename) == outside / "shop" / "source.py"
    assert pickle.loads(pickle.dumps(rows)) is rows
    assert case_files.own_profile("shop") == outside / "shop" / "profile.json"


def test_an_installed_package_brings_cases(outside, installs):
    """An entry point names a case by its package, which is not imported for it; imports relative to it work."""
    package = installs("shop = acme_models.the_shop")
    shop.write(package).rename(package / "the_shop")
    shop.edit(package / "the_shop" / "source.py", ("from pipelines.cases.shop.schema", "from .schema"))
    assert case_files.folder_of("shop") == package / "the_shop"
    assert "acme_models.the_shop" not in sys.modules
    assert problems() == {"desk": "", "shop": ""}
    assert cases.load_fields("shop") == cases.part("shop", "source").FIELDS


def test_an_edit_outside_is_seen(outside):
    """A case that changes while a process runs is read anew, and one whose folder is gone is none."""
    folder = shop.write(outside)
    assert problems()["shop"] == ""
    shop.edit(folder / "schema.py", ('label="sold"', 'label="sold'))
    assert f"{folder}/schema.py, line 7: SyntaxError" in problems()["shop"]
    shutil.rmtree(folder)
    assert problems() == {"desk": ""}


@pytest.mark.parametrize(
    ("name", "words"),
    [("desk", "there are two cases of this name"), ("encoder", "has the name of a part of Perennial")],
)
def test_a_name_that_is_taken_stops_this_name_only(outside, name, words):
    """Two cases of one name are a message with both folders; the others go on."""
    shop.write(outside)
    folder = shop.write(outside, name)
    (case_files.CASES_ROOT / "encoder.py").touch()
    found = problems()
    assert found.pop("shop") == ""
    assert words in found[name]
    assert str(folder) in found[name]
    for read in (lambda: load_params(name), lambda: cases.part(name, "schema")):
        with pytest.raises(ConfigError, match=words):
            read()


def test_a_folder_named_twice_holds_each_case_once(outside, monkeypatch):
    """The same folder by two ways is no two cases."""
    shop.write(outside)
    monkeypatch.setenv("PERENNIAL_CASES", os.pathsep.join([str(outside), "", str(outside)]))
    assert problems() == {"desk": "", "shop": ""}


@pytest.fixture
def as_another(tmp_path):
    """Runs something as a user to whom files of umask 077 are closed, as a service in a container is.

    What is made from here on is open: a command that ran in this process may have left that umask.
    """
    before = os.umask(0o022)

    def run(asked):
        if os.geteuid() != 0:
            return asked()
        opened = [path for path in tmp_path.parents if path.stat().st_mode & 0o005 != 0o005]
        modes = [path.stat().st_mode for path in opened]
        for path in opened:
            path.chmod(0o755)
        os.seteuid(65534)
        try:
            return asked()
        finally:
            os.seteuid(0)
            for path, mode in zip(opened, modes, strict=True):
                path.chmod(mode)

    tmp_path.chmod(0o755)
    yield run
    os.umask(before)


def test_a_folder_that_is_closed_to_a_process_stops_its_case_only(as_another, outside):
    """A case's folder, a file in it or the folder of cases without its reader's rights: one message with the mend."""
    shop.write(outside)
    shut, closed = shop.write(outside, "shut"), shop.write(outside, "closed")
    shut.chmod(0)
    (closed / "schema.py").chmod(0)
    try:
        found = as_another(problems)
        assert (found["desk"], found["shop"]) == ("", "")
        assert f"{shut} cannot be read (Permission denied): let all read it (chmod -R go+rX)" in found["shut"]
        assert f"{closed}/schema.py" in found["closed"]
        assert "Permission denied" in found["closed"]
        outside.chmod(0)
        found = as_another(problems)
        assert list(found) == ["desk", str(outside)]
        assert "cannot be read (Permission denied): let all read it" in found[str(outside)]
    finally:
        outside.chmod(0o755)
        shut.chmod(0o755)


def test_folders_that_hold_no_cases_are_told(outside, monkeypatch, tmp_path):
    """A folder that is not there, and a case in place of the folder above it, are one message each."""
    lost, case = tmp_path / "lost", shop.write(outside)
    monkeypatch.setenv("PERENNIAL_CASES", os.pathsep.join(map(str, [outside, lost, case])))
    found = problems()
    assert (found.pop("desk"), found.pop("shop")) == ("", "")
    assert list(found) == [str(lost), str(case)]
    assert "which cannot be read (No such file or directory)" in found[str(lost)]
    assert "which is a case itself: name the folder that it lies in" in found[str(case)]


def test_a_folder_cases_is_found_where_a_command_is_typed(outside, monkeypatch, tmp_path):
    """Without the variable, cases are those of the folder `cases` here, but for a stack's own processes.

    An empty variable says that there are none.
    """
    shop.write(tmp_path / "work" / "cases")
    monkeypatch.chdir(tmp_path / "work")
    assert set(problems()) == {"desk"}
    assert case_files.for_new() == outside
    monkeypatch.delenv("PERENNIAL_CASES")
    assert problems() == {"desk": "", "shop": ""}
    assert case_files.for_new() == tmp_path / "work" / "cases"
    monkeypatch.setenv("PERENNIAL_STACK", "tag")
    assert set(problems()) == {"desk"}
    monkeypatch.delenv("PERENNIAL_STACK")
    monkeypatch.setenv("PERENNIAL_CASES", "")
    assert set(problems()) == {"desk"}


def test_a_second_shell_finds_what_the_stack_was_started_with(outside, monkeypatch, tmp_path):
    """Without the variable, folders are those of the state's stack; of one that is gone it is told who names it."""
    shop.write(outside)
    home = tmp_path / "state"
    home.mkdir()
    (home / "env").write_text(f"PERENNIAL_CASES={outside}\n")
    monkeypatch.setenv("PERENNIAL_HOME", str(home))
    monkeypatch.delenv("PERENNIAL_CASES")
    monkeypatch.chdir(tmp_path)
    assert problems() == {"desk": "", "shop": ""}
    moved = outside.rename(tmp_path / "moved")
    assert f"PERENNIAL_CASES in {home}/env names {outside}, which cannot be read" in problems()[str(outside)]
    moved.rename(tmp_path / "cases")
    assert problems() == {"desk": "", "shop": ""}


def test_a_new_case_goes_where_cases_of_ones_own_lie(monkeypatch, tmp_path):
    """It goes into a checkout's own folder, and never into a package that is installed."""
    monkeypatch.delenv("PERENNIAL_CASES", raising=False)
    monkeypatch.chdir(tmp_path)
    assert case_files.for_new() == case_files.CASES_ROOT
    monkeypatch.setattr(case_files.installation, "CHECKOUT", False)
    assert case_files.for_new() == tmp_path / "cases"


BROKEN_ENTRIES = {
    "acme_models.nothing": "no such package is installed",
    "acme_models.module": "it is a module and no package",
    "acme_models.broken.shop": "ZeroDivisionError",
    "nobody.shop": "ModuleNotFoundError",
}


@pytest.mark.parametrize("value", BROKEN_ENTRIES)
def test_a_broken_entry_point_is_its_cases(outside, installs, value):
    """An entry point that leads nowhere is the problem of the case that it names."""
    package = installs(f"shop = {value}")
    (package / "module.py").touch()
    (package / "broken").mkdir()
    (package / "broken" / "__init__.py").write_text("1 / 0")
    found = problems()
    assert found.pop("desk") == ""
    assert f"the entry point shop = {value} in perennial.cases" in found["shop"]
    assert BROKEN_ENTRIES[value] in found["shop"]


def test_an_error_outside_names_its_file(outside):
    """What the code of a case outside raises is that case's, with the file's own path and line."""
    folder = shop.write(outside)
    shop.edit(folder / "source.py", ("return Source(", "return 1 / 0 or Source("))
    with pytest.raises(ZeroDivisionError) as failed:
        cases.part("shop", "source").resolve(None, None)
    assert f"case shop: {folder}/source.py, line 11: ZeroDivisionError" in str(faults.of_case(failed.value))


def test_a_code_hash_does_not_say_where_a_case_lies(outside):
    """A case that moves from the tree to a folder outside keeps its hash, and with it the keys of its steps."""
    inside = shop.write(case_files.CASES_ROOT)
    before = code_sha256("shop")
    inside.rename(outside / "shop")
    assert code_sha256("shop") == before
    (outside / "shop" / "more.py").touch()
    assert code_sha256("shop") != before
