"""The package as somebody has it who installed it: the built wheel in an environment of its own, and no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Mapping
from pathlib import Path

from embedded import triton
from embedded.install import find_uv
from pipelines.files import file_sha256

ROOT = Path(__file__).parents[1]
ALONE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
"""Nothing is downloaded: libraries are those of this environment."""


def made(command, cwd: Path) -> None:
    """Run a command that has to succeed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would lead to a checkout or to another state."""
    private = ("PYTHON", "PERENNIAL", "AIRFLOW", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(private)} | more


def called(command, cwd: Path, timeout: float = 600, **more: str) -> str:
    """Run a command where no repository is; what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def install_wheel(folder: Path) -> Path:
    """Build the wheel from the sdist and install it in ``folder/venv``: its ``bin``.

    Libraries are this environment's.
    """
    venv.create(folder / "venv", symlinks=True)
    made([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder], ROOT)
    [source] = folder.glob("perennial-*.tar.gz")
    with tarfile.open(source) as packed:
        packed.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    made([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], unpacked)
    [wheel] = folder.glob("perennial-*.whl")
    install(folder / "venv", wheel)
    own, libraries = site(folder / "venv"), Path(sysconfig.get_path("purelib"))
    (own / "libraries.pth").write_text(f"{libraries}\n")
    # Beside the package, as pip puts it: Triton must not find this numpy.
    (own / "numpy").symlink_to(libraries / "numpy")
    return folder / "venv" / "bin"


def install(environment_folder: Path, what: Path) -> None:
    """Install a wheel or a source folder into an environment."""
    made([*_installer(environment_folder, "install"), *ALONE, what], environment_folder)


def uninstall(environment_folder: Path, name: str) -> None:
    """Remove a package from an environment."""
    made([*_installer(environment_folder, "uninstall"), name], environment_folder)


def _installer(environment_folder: Path, verb: str) -> list[str | Path]:
    """The command that ``make setup`` has used, for that environment: one that uv has made has no pip."""
    python = environment_folder / "bin" / "python"
    if uv := find_uv():
        return [uv, "pip", verb, "--python", python]
    own = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}", verb]
    return [*own, "--yes"] if verb == "uninstall" else own


def site(environment_folder: Path) -> Path:
    """Where an environment's packages lie."""
    return environment_folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"


def without_tools(environment_folder: Path) -> str:
    """A PATH with this machine's programs but for git, make and DVC, which the environment cannot import either."""
    programs = environment_folder / "programs"
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for path in Path(folder).glob("*"):
            if path.name not in ("git", "make", "dvc", "python", "python3"):
                (programs / path.name).unlink(missing_ok=True)
                (programs / path.name).symlink_to(path)
    (site(environment_folder) / "no_dvc.pth").write_text("import sys; sys.modules['dvc'] = None\n")
    return str(programs)


def lend_triton(environment_folder: Path) -> None:
    """Let an environment have this checkout's Triton, as if `perennial up` had installed it there."""
    own = environment_folder / "triton"
    own.mkdir()
    for part in triton.VENV.iterdir():
        (own / part.name).symlink_to(part.resolve())
    (own / triton.STAMP).write_text(file_sha256(triton.LOCK))


def modules(python: Path, cwd: Path, names: tuple[str, ...], **more: str) -> Mapping[str, Path]:
    """Where packages lie as an interpreter finds them."""
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names!r}]"
    found = called([python, "-c", code], cwd, **more).splitlines()
    return dict(zip(names, map(Path, found), strict=True))
