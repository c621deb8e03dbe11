"""`python -m embedded.room`: whether the container engine has room for the full stack, and the limits that fit it.

And whether the folder of cases is one that containers can be given: they would say so only after the images are built.
Standard library only. Prints ``PERENNIAL_CPUS=<n> PERENNIAL_CPUS_GPU=<n>``, as environment or ``.env`` set them, else
what docker-compose.yaml has by itself or, where that is fewer, the engine's cores: a container whose limit is above
them does not start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USUAL = {"PERENNIAL_CPUS": 4.0, "PERENNIAL_CPUS_GPU": 8.0}
"""The limits of docker-compose.yaml, in cores: of each container in which tasks run and of Triton.

The second is the one of the GPU worker.
"""
LEAST_CORES, LEAST_GIB = 2, 6.0
"""Fixed limits of smaller services ask for two cores.

The default profile needs 3.2 GB once its first champions are trained.
"""
CASES = "PERENNIAL_CASES"
"""The variable that names the folder of cases which containers are given."""


def settings(dotenv: Path, environment: dict[str, str], names: Iterable[str] = tuple(USUAL)) -> dict[str, str]:
    """What is set of ``names`` (the two limits by themselves); the environment comes before the file, as in Compose."""
    lines = []
    if dotenv.exists():
        lines = dotenv.read_text().splitlines()
    written = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    found = {name.strip(): value.strip().strip("'\"") for name, value in written.items()} | environment
    return {name: found[name] for name in names if found.get(name)}


def limits(cores: int, gib: float, given: dict[str, str]) -> dict[str, str]:
    """The limits to start with. Raises ValueError where the engine has too little for them, or at all."""
    if cores < LEAST_CORES or gib < LEAST_GIB:
        raise ValueError(
            f"the container engine has {cores} core(s) and {gib:.1f} GiB of memory, the stack needs {LEAST_CORES} and "
            f"{LEAST_GIB:g}:"
            " give it more (Docker Desktop: Settings, Resources), or start the stack as processes (`make up`)"
        )
    for name, value in given.items():
        try:
            fits = 0 < float(value) <= cores
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}={value}, but the container engine has {cores} cores: set {name} to a number up to that, "
                "in the environment or in .env"
            )
    return {name: given.get(name) or f"{min(usual, cores):g}" for name, usual in USUAL.items()}


def check_cases(folder: str, root: Path = ROOT) -> None:
    """Raises ValueError if ``folder``, absolute or below ``root``, cannot be mounted into the containers."""
    if os.pathsep in folder:
        raise ValueError(
            f"{CASES} names several folders ({folder}), and containers are given one: put all cases into one folder"
        )
    if not (root / Path(folder).expanduser()).is_dir():
        raise ValueError(f"{CASES}={folder} is no folder: make it, or take {CASES} out of the environment or of .env")


def engine() -> tuple[int, float]:
    """Cores and GiB of memory of the engine that `docker` talks to. Raises ValueError if it does not answer."""
    done = subprocess.run(
        ["docker", "info", "--format", "{{.NCPU}} {{.MemTotal}}"], capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    if done.returncode or len(words) != 2 or words[0] == "0":
        raise ValueError(
            f"the container engine does not answer: {done.stderr.strip() or done.stdout.strip()}: start it"
        )
    return int(words[0]), int(words[1]) / 2**30


def main() -> int:
    """Print the limits; 2 and one sentence where they do not fit."""
    try:
        for folder in settings(ROOT / ".env", dict(os.environ), [CASES]).values():
            check_cases(folder)
        found = limits(*engine(), settings(ROOT / ".env", dict(os.environ)))
    except ValueError as error:
        print(f"make compose-up: {error}", file=sys.stderr)
        return 2
    print(" ".join(f"{name}={value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
