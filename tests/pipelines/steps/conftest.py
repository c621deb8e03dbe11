"""State folders for the steps that release, beside a real Triton."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from pipelines.config import Settings
from pipelines.deploy import triton
from pipelines.errors import PerennialError
from tests.pipelines.candidates import CASE
from tests.pipelines.conftest import free_port


@pytest.fixture
def released(triton_server, tmp_path):
    """See :func:`fresh_state`, for one test."""
    return fresh_state(triton_server, tmp_path)


def fresh_state(server, folder):
    """Settings of a fresh ledger in ``folder``, no artefacts and an empty model repository on the module's Triton; MLflow is down."""
    home, ports = server
    address = f"127.0.0.1:{ports.triton_http}"
    with contextlib.suppress(PerennialError):
        triton.unload(address, CASE)
    for name in ("artefacts", f"model_repository/{CASE}"):
        shutil.rmtree(home / name, ignore_errors=True)
    return Settings(
        home=home,
        ledger_url=f"sqlite:///{folder / 'ledger.db'}",
        triton_http=address,
        triton_grpc=f"127.0.0.1:{ports.triton_grpc}",
        mlflow_url=f"http://127.0.0.1:{free_port()}",
        actor="ada",
    )
