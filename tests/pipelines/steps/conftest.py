"""State folders for the steps that release, beside a real Triton."""

from __future__ import annotations

import contextlib
import shutil

import pytest

from embedded import triton as embedded
from pipelines.deploy import triton
from pipelines.errors import PerennialError
from tests.pipelines.candidates import CASE
from tests.pipelines.conftest import free_port


@pytest.fixture
def released(triton_server, tmp_path):
    """See :func:`fresh_state`, for one test."""
    return fresh_state(triton_server, tmp_path)


def fresh_state(server, folder):
    """Settings of a fresh ledger in ``folder``, no artefacts and an empty model repository on the module's Triton.

    MLflow is down.
    """
    home, ports = server
    settings = embedded.settings(home, ports)
    with contextlib.suppress(PerennialError):
        triton.unload(settings, CASE)
    for name in ("artefacts", f"model_repository/{CASE}"):
        shutil.rmtree(home / name, ignore_errors=True)
    own = {
        "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
        "mlflow_url": f"http://127.0.0.1:{free_port()}",
        "actor": "ada",
    }
    return settings.model_copy(update=own)
