"""What `make setup` and an installed package's first start find, say and install, without installing anything."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from embedded import check_machine, install, triton
from pipelines.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def script(path, text):
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_this_machine_is_fit():
    """Where the tests run nothing is missing, and the interpreter that is found is a 3.11."""
    assert check_machine.problems(ROOT, disk=False) == []
    assert check_machine.find_python()[1]["version"] == [3, 11]


def test_another_python_is_named_as_missing(tmp_path, monkeypatch):
    """With no Python 3.11 on the path the problem says what was tried, and one command mends it."""
    script(tmp_path / "python3", """echo '{"version": [3, 12], "prefix": "/usr", "venv": true}'""")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_machine.problems(ROOT, disk=False)
    assert any("no Python 3.11" in problem for problem, _ in found)
    assert "\n" not in check_machine.remedy(found)
    assert "python" in check_machine.remedy(found)


def test_a_broken_shim_is_skipped(tmp_path, monkeypatch):
    """A python3.11 that cannot run (a version manager's shim) is passed over for one that can."""
    script(tmp_path / "python3.11", "exit 127")
    good = script(tmp_path / "python3", """echo '{"version": [3, 11], "prefix": "/usr", "venv": true}'""")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_machine.find_python()[0] == str(good)


def test_libpython_is_found_beside_the_interpreter(tmp_path, monkeypatch):
    """A libpython that the loader does not know is found in the interpreter's own lib, and nowhere else."""
    script(tmp_path / "bin" / "ldconfig", "echo nothing")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert check_machine.find_libpython(str(tmp_path)) == ""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / check_machine.LIBPYTHON).touch()
    assert check_machine.find_libpython(str(tmp_path)) == str(tmp_path / "lib")


def test_a_missing_openmp_runtime_is_named(tmp_path, monkeypatch):
    """Where neither the loader nor a folder that it searches first has libgomp, the package that brings it is named."""
    script(tmp_path / "ldconfig", "echo nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert "libgomp1" in [package for _, package in check_machine.problems(ROOT, disk=False)]
    (tmp_path / check_machine.LIBGOMP).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert "libgomp1" not in [package for _, package in check_machine.problems(ROOT, disk=False)]


def test_one_command_mends_everything(monkeypatch):
    """On Debian 12 all that is missing goes into one apt-get line; what no package mends gives no command."""
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self: 'ID=debian\nVERSION_ID="12"\n' if str(self) == "/etc/os-release" else real(self)
    )
    command = check_machine.remedy(
        [("no venv", "python3.11-venv"), ("no libpython", "libpython3.11"), ("no space", "")]
    )
    assert command.endswith("apt-get install -y python3.11-venv libpython3.11")
    assert check_machine.remedy([("no space", "")]) == ""


def test_too_little_disk_is_said_only_before_an_installation(monkeypatch):
    """The space is checked for a first installation, not when everything is installed."""
    monkeypatch.setattr(check_machine, "NEEDED_GB", 1e9)
    assert any("GB are free" in problem for problem, _ in check_machine.problems(ROOT))
    assert check_machine.problems(ROOT, disk=False) == []


def test_setup_says_what_is_missing_in_a_second(tmp_path):
    """`make setup` on an unfit machine ends with 1 and prints the command.

    It is run by a Python without anything installed.
    """
    script(tmp_path / "python3.11", "exit 127")
    script(tmp_path / "ldconfig", "exit 0")
    (tmp_path / "python3").symlink_to(tmp_path / "python3.11")
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from embedded import install; sys.exit(install.main())",
        ],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Python 3.11" in done.stderr
    assert "this mends it" in done.stderr


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A root with two locks and stand-ins for uv and pip that write down how they were called."""
    for lock in install.ENVIRONMENTS.values():
        (tmp_path / lock).write_text("numpy==1.26.4\n")
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\ntorch==2.13.0\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(check_machine, "problems", lambda *_, **__: [])
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels /more/wheels")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    for folder in install.ENVIRONMENTS:
        script(
            tmp_path / folder / "bin" / "python",
            'echo "python $*" >> "$CALLS"; case "$*" in *--no-index*) exit 1;; esac',
        )
    return tmp_path


def test_torch_comes_from_the_index_when_no_wheel_is_at_hand(house, monkeypatch):
    """Plain pip: torch is tried in pip's find-links, then on the CPU index; then the lock, without resolving.

    The stamp makes it current.
    """
    monkeypatch.setenv("INSTALLER", "pip")
    assert not install.is_current(house)
    assert install.main() == 0
    calls = [line for line in (house / "calls").read_text().splitlines() if "install" in line]
    assert [line.endswith("--no-deps --no-index torch==2.13.0") for line in calls] == [True, False, False, False]
    assert f"--index-url {install.TORCH_INDEX} torch==2.13.0" in calls[1]
    assert calls[2].endswith(f"--no-deps -r {house / 'requirements.lock'}")
    assert calls[3].endswith(f"--no-deps -r {house / 'requirements-triton.lock'}")
    assert install.is_current(house)
    (house / "requirements-triton.lock").write_text("numpy==1.26.3\n")
    assert not install.is_current(house)


def test_uv_gets_pips_find_links(house, monkeypatch):
    """Uv, which does not read pip's settings, is given pip's find-links."""
    uv = script(house / "path" / "uv", 'echo "uv $*" >> "$CALLS"')
    monkeypatch.setenv("PATH", f"{uv.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("INSTALLER", raising=False)
    assert install.main() == 0
    calls = [line for line in (house / "calls").read_text().splitlines() if line.startswith("uv pip install")]
    assert len(calls) == 3
    assert all(
        "--find-links /some/wheels --find-links /more/wheels" in line and "--compile-bytecode" in line for line in calls
    )


def test_a_failed_installation_is_not_taken_for_a_good_one(house, monkeypatch, capsys):
    """If a package cannot be had, setup ends with 1, names the command, and writes no stamp."""
    monkeypatch.setenv("INSTALLER", "pip")
    script(house / ".venv" / "bin" / "python", "exit 1")
    assert install.main() == 1
    assert "TORCH_INDEX=" in capsys.readouterr().err
    assert not install.is_current(house)


def test_children_may_write_byte_code(monkeypatch):
    """PYTHONDONTWRITEBYTECODE never reaches an installer."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    seen = subprocess.run(
        [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
        env=install._environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PYTHONDONTWRITEBYTECODE" not in json.loads(seen.stdout)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose Triton is an environment without any package; what was said."""
    said = []
    (tmp_path / "lock").touch()
    monkeypatch.setattr(triton, "CHECKOUT", False)
    monkeypatch.setattr(triton, "VENV", tmp_path / "triton")
    monkeypatch.setattr(triton, "LOCK", tmp_path / "lock")
    return said


def test_a_package_brings_triton_once(package, tmp_path):
    """The first start makes Triton's environment, the next ones find it, and one of another version makes it anew."""
    triton.bring(package.append)
    assert (tmp_path / "triton" / "bin" / "python").exists()
    triton.bring(package.append)
    assert [str(tmp_path / "triton") in line for line in package] == [True]
    (tmp_path / "lock").write_text("# another version\n")
    triton.bring(package.append)
    assert len(package) == 2


def test_triton_that_cannot_be_had_is_told(package, tmp_path, monkeypatch):
    """A package that cannot be had, a folder that cannot be written and an unfit machine: each says what to do."""
    (tmp_path / "lock").write_text("no-such-package-perennial==1\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("INSTALLER", "pip")
    with pytest.raises(ConfigError, match=r"Triton was not installed: .*start again"):
        triton.bring(package.append)
    assert not (tmp_path / "triton" / triton.STAMP).exists()
    monkeypatch.setattr(triton, "VENV", tmp_path / "lock" / "triton")
    with pytest.raises(ConfigError, match="as the owner of that folder"):
        triton.bring(package.append)
    monkeypatch.setattr(check_machine, "find_libpython", lambda _: "")
    with pytest.raises(ConfigError, match=r"libpython3\.11.* mends it"):
        triton.bring(package.append)


def test_a_checkout_leaves_triton_to_make_setup(tmp_path, monkeypatch):
    """In a checkout a start installs nothing."""
    monkeypatch.setattr(triton, "VENV", tmp_path / "triton")
    triton.bring(pytest.fail)
