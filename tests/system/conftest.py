"""One stack for all system tests: a fast demo that is still running."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from embedded.airflow import Airflow
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.encoders import write_encoder

REPOSITORY = Path(__file__).resolve().parents[2]
CASE = os.environ.get("PERENNIAL_TEST_CASE", "loans")
"""What the demo replays; empty (`make test-full`): what it chooses by itself, the bank's data where they are found."""


def _make(*arguments: str, timeout: float = 600, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL_", "AIRFLOW"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=REPOSITORY,
        env=environment | extra,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="package")
def small(tmp_path_factory):
    """A folder of parameters.

    The texts of triage go through a tiny encoder, trained by two ranks; loans drift on the third day, and their labels
    come after one.
    """
    folder = tmp_path_factory.mktemp("params")
    encoder = write_encoder(folder / "encoder")
    changes: dict[str, dict] = {
        "triage": {
            "model": {"encoder": str(encoder), "max_tokens": 32},
            "dataset": {"max_rows": 600, "min_holdout": 50},
            "train": {"epochs": 1, "ranks": 2, "threads": 1},
            "export": {"int8": False},
        },
        "loans": {
            "label_delay_days": 1,
            "source": {"drift": "concept", "drift_at": "2020-05-27", "drift_every_days": None},
        },
    }
    for case, blocks in changes.items():
        params = load_params(case).model_dump(mode="json", by_alias=True)
        for block, values in blocks.items():
            params[block] = params[block] | values if isinstance(values, dict) else values
        (folder / f"{case}.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture(scope="package")
def home(tmp_path_factory, small):
    """The state of a fast demo of six ticks at most whose stack still runs; `make down` must leave nothing of it.

    What tests run by hand reads the demo's parameters, as the stack does.
    """
    state = tmp_path_factory.mktemp("demo") / "state"
    try:
        done = _make(
            "demo", f"CASE={CASE}", "FAST=1", "TICKS=6", "KEEP=1", f"STATE={state}", PERENNIAL_PARAMS_DIR=str(small)
        )
        assert done.returncode == 0, (
            f"make demo ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PERENNIAL_PARAMS_DIR", str(small))
            yield state
    finally:
        down = _make("down", f"STATE={state}")
        assert down.returncode == 0, down.stderr
    tagged = [pid for pid in Path("/proc").glob("[0-9]*") if _belongs(pid, state)]
    assert tagged == []


def _belongs(process: Path, state: Path) -> bool:
    try:
        return f"PERENNIAL_HOME={state}".encode() in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


@pytest.fixture(scope="package")
def summary(home):
    """summary.json of the demo."""
    return json.loads((home / "summary.json").read_text())


@pytest.fixture(scope="package")
def settings(home):
    """The settings of the demo's stack, with the addresses that its processes got."""
    ports = json.loads((home / "stack.json").read_text())["ports"]
    address = "127.0.0.1"
    return Settings(
        home=home,
        mlflow_url=f"http://{address}:{ports['mlflow']}",
        airflow_url=f"http://{address}:{ports['airflow']}",
        gateway_url=f"http://{address}:{ports['gateway']}",
        triton_grpc=f"{address}:{ports['triton_grpc']}",
        triton_client=(home / "secrets" / "triton_client").read_text(),
    )


@pytest.fixture(scope="package")
def airflow(settings):
    """The demo's Airflow."""
    return Airflow(settings.airflow_url)
