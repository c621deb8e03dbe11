"""`make setup`: check the machine, then make ``.venv`` and ``.venv-triton`` from their locks. Standard library only.

Packages come from wherever pip is configured to look; uv, if it is there or can be installed, only makes it
faster. The locks are complete, so nothing is resolved. torch is taken from pip's find-links if they hold
it, else from ``TORCH_INDEX`` (default: the CPU builds; PyPI's own wheel would bring gigabytes of CUDA).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from embedded import check_machine

ROOT = Path(__file__).resolve().parent.parent
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
ENVIRONMENTS = {".venv": "requirements.lock", ".venv-triton": "requirements-triton.lock"}
STAMP = Path(".venv", "setup.sha256")


def main() -> int:
    """Install what is missing; 0 if all is there, 1 with the reason (and the command that mends it) otherwise."""
    began = time.monotonic()
    stale = not is_current(ROOT)
    wish = os.environ.get("PYTHON", "")
    found = check_machine.problems(ROOT, wish, disk=stale)
    if found:
        print("make setup: this machine cannot run Perennial yet:", file=sys.stderr)
        for problem, _ in found:
            print(f"  - {problem}", file=sys.stderr)
        if command := check_machine.remedy(found):
            print(f"this mends it:\n\n    {command}\n", file=sys.stderr)
        return 1
    if not stale:
        print("make setup: the environments are those of the locks")
        return 0
    python, _ = check_machine.find_python(wish)
    try:
        _bring_uv(python)
        for folder, lock in ENVIRONMENTS.items():
            install(python, ROOT / folder, ROOT / lock)
    except subprocess.CalledProcessError as error:
        print(
            (
                f"make setup: `{' '.join(error.cmd)}` ended with {error.returncode}; what it said stands above. "
                "Run `make setup` again: it goes on where it stopped."
            ),
            file=sys.stderr,
        )
        return 1
    (ROOT / STAMP).write_text(fingerprint(ROOT))
    print(f"make setup: done in {time.monotonic() - began:.0f} s")
    return 0


def fingerprint(root: Path) -> str:
    """sha256 of all locks."""
    return hashlib.sha256(b"\0".join((root / lock).read_bytes() for lock in ENVIRONMENTS.values())).hexdigest()


def is_current(root: Path) -> bool:
    """Whether both environments were made from the locks as they are now."""
    try:
        stamp = (root / STAMP).read_text()
    except OSError:
        return False
    return stamp == fingerprint(root) and all((root / folder / "bin" / "python").exists() for folder in ENVIRONMENTS)


def install(python: str, venv: Path, lock: Path) -> None:
    """Make one environment, or bring it up to its lock. CalledProcessError if a package cannot be had."""
    print(f"{venv.name}: {len(lock.read_text().splitlines())} packages", flush=True)
    uv = find_uv()
    own = str(venv / "bin" / "python")
    if not Path(own).exists():
        _run(_maker(uv, python, venv))
    installer = _installer(uv, own)
    torch = re.search(r"^torch==\S+", lock.read_text(), re.MULTILINE)
    if torch:
        _torch(installer, torch.group())
    _run([*installer, "--no-deps", "-r", str(lock)])


def _maker(uv: str, python: str, venv: Path) -> list[str]:
    """The command that makes an environment."""
    if uv:
        return [uv, "venv", "--quiet", "--python", python, str(venv)]
    return [python, "-m", "venv", str(venv)]


def _installer(uv: str, python: str) -> list[str]:
    """The command that installs packages for a ``python``, without them."""
    if not uv:
        return _pip(python)
    options = ["--quiet", "--python", python, "--compile-bytecode", "--index-strategy", "unsafe-best-match"]
    return [uv, "pip", "install", *options, *uv_sources(python)]


def find_uv() -> str:
    """The uv on the PATH, else one installed beside the packages or this interpreter, else nothing (then pip does all).

    ``INSTALLER=pip`` asks for pip.
    """
    if os.environ.get("INSTALLER") == "pip":
        return ""
    beside = (ROOT / ".venv" / "bin" / "uv", Path(sys.executable).with_name("uv"))
    return shutil.which("uv") or next((str(path) for path in beside if path.exists()), "")


def uv_sources(python: str) -> list[str]:
    """What pip is configured with, as options of uv, which does not read pip's settings."""
    links, indexes, extra = (pip_setting(python, name) for name in ("find-links", "index-url", "extra-index-url"))
    options = [option for link in links for option in ("--find-links", link)]
    options += [option for index in indexes[:1] for option in ("--default-index", index)]
    return options + [option for index in extra if index.startswith("http") for option in ("--index", index)]


def pip_setting(python: str, name: str) -> list[str]:
    """The values of one of pip's settings, from its environment variable or its configuration files."""
    said = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if said is None:
        for program in (python, sys.executable):
            listed = subprocess.run(
                [program, "-m", "pip", "config", "list"],
                capture_output=True,
                text=True,
                check=False,
                env=_environment(),
            )
            values = re.findall(rf"^\w+\.{name}='(.*)'$", listed.stdout, re.MULTILINE)
            if values:
                said = values[-1].replace("\\n", " ")
                break
    return (said or "").split()


def _bring_uv(python: str) -> None:
    """Try to have uv: it installs four times as fast as pip. Doing without it is fine."""
    if find_uv() or os.environ.get("INSTALLER") == "pip":
        return
    venv = ROOT / ".venv"
    if not (venv / "bin" / "python").exists():
        _run([python, "-m", "venv", str(venv)])
    subprocess.run(
        [*_pip(str(venv / "bin" / "python")), "uv<1"], capture_output=True, check=False, cwd=ROOT, env=_environment()
    )


def _pip(python: str) -> list[str]:
    return [python, "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]


def _torch(installer: list[str], requirement: str) -> None:
    """Install torch, pip's find-links first: an index of the same name may hold a CUDA build."""
    index = os.environ.get("TORCH_INDEX") or TORCH_INDEX
    first = subprocess.run(
        [*installer, "--no-deps", "--no-index", requirement],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=_environment(),
    )
    if first.returncode == 0:
        return
    option = "--default-index" if installer[1] == "pip" else "--index-url"
    try:
        _run([*installer, "--no-deps", option, index, requirement])
    except subprocess.CalledProcessError:
        print(
            (
                f"{requirement} is neither in pip's find-links nor on {index}: name an index that has it, make setup "
                "TORCH_INDEX=https://..."
            ),
            file=sys.stderr,
        )
        raise


def _environment() -> dict[str, str]:
    # Some machines export PYTHONDONTWRITEBYTECODE: every start of every service would compile its imports anew.
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PYTHONPATH")
    }


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env=_environment())


if __name__ == "__main__":
    sys.exit(main())
