"""Can this machine run Perennial? Run by plain ``python3`` before anything is installed: standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBPYTHON = "libpython3.11.so.1.0"
"""Triton's Python stub is linked against it."""
LIBGOMP = "libgomp.so.1"
"""LightGBM's wheel is linked against it."""
NEEDED_GB = 6
APT_HAS_311 = (("debian", "12"), ("ubuntu", "22.04"))
PROBE = (
    "import importlib.util, json, sys; print(json.dumps({'version': list(sys.version_info[:2]), "
    "'prefix': sys.base_prefix, 'venv': importlib.util.find_spec('ensurepip') is not None}))"
)


def probe(python: str) -> dict[str, Any]:
    """What one interpreter says about itself: ``{version, prefix, venv}``, or nothing if it does not run."""
    try:
        answer = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True, timeout=20)
        said: dict[str, Any] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return said


def find_python(wish: str = "") -> tuple[str, dict[str, Any]]:
    """The first Python 3.11 among ``wish``, python3.11 and python3.

    Its absolute path and what it says, or ``("", {})``.
    """
    for name in filter(None, (wish, "python3.11", "python3")):
        path = shutil.which(name)
        if path is None:
            continue
        said = probe(path)
        if said.get("version") == [3, 11]:
            return path, said
    return "", {}


def find_libpython(prefix: str) -> str:
    """Where ``libpython3.11.so.1.0`` is: "loader" if the loader knows it, else a folder, else nothing.

    An interpreter built with ``--enable-shared`` (pyenv, uv) has it in its own ``lib``, where the loader does not look.
    """
    if knows(LIBPYTHON):
        return "loader"
    return next((folder for folder in [*_folders(), str(Path(prefix, "lib"))] if Path(folder, LIBPYTHON).exists()), "")


def _folders() -> list[str]:
    """Where the loader looks before it looks into its own."""
    return [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]


def knows(library: str) -> bool:
    """Whether the loader knows a library by this name."""
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    with contextlib.suppress(OSError):
        listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False, timeout=20)
        return library in listed.stdout
    return False


def problems(root: Path, wish: str = "", *, disk: bool = True) -> list[tuple[str, str]]:
    """All that keeps Perennial from being installed in ``root``.

    Pairs of (what is wrong, the apt package that mends it or ""). ``disk``: whether the space for an installation is
    still needed.
    """
    found = []
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found.append((f"this is {sys.platform} on {platform.machine()}: Triton's binaries need Linux on x86-64", ""))
    elif platform.libc_ver()[0] != "glibc":
        found.append(("the C library is not glibc (Alpine?): use Debian, Ubuntu or Fedora", ""))
    free = shutil.disk_usage(root).free / 1e9
    if disk and free < NEEDED_GB:
        found.append((f"{free:.1f} GB are free in {root}: {NEEDED_GB} GB are needed", ""))
    python, said = find_python(wish)
    if not python:
        tried = ", ".join(filter(None, (wish, "python3.11", "python3")))
        found.append(
            (
                f"no Python 3.11 (tried {tried}); another one can be given: make setup PYTHON=/path/to/python3.11",
                "python3.11 python3.11-venv",
            )
        )
    elif not said["venv"] and not shutil.which("uv"):
        found.append((f"{python} cannot make virtual environments (no ensurepip)", "python3.11-venv"))
    if not find_libpython(said.get("prefix", "/usr")):
        found.append((f"{LIBPYTHON} is missing: Triton cannot start a model without it", "libpython3.11"))
    if not knows(LIBGOMP) and not any(Path(folder, LIBGOMP).exists() for folder in _folders()):
        found.append((f"{LIBGOMP} is missing: LightGBM needs it; it comes with gcc's runtime libraries", "libgomp1"))
    return found


def remedy(found: list[tuple[str, str]]) -> str:
    """The one command that mends what can be mended by installing something, or nothing."""
    packages = " ".join(package for _, package in found if package)
    if not packages:
        return ""
    words = {}
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text().splitlines():
            name, _, value = line.strip().partition("=")
            words[name] = value
    system = (words.get("ID", "").strip('"'), words.get("VERSION_ID", "").strip('"'))
    if system in APT_HAS_311:
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"{sudo}apt-get install -y {packages}"
    # A Python by uv brings its own libpython and venv, on any distribution and without root.
    uv = "uv" if shutil.which("uv") else 'curl -LsSf https://astral.sh/uv/install.sh | sh && "$HOME/.local/bin/uv"'
    return f"{uv} python install 3.11"
