"""A table with every kind of field and a text beside it behind the gateway and a real Triton."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest

from embedded import triton as embedded
from pipelines import storage
from pipelines.cases.receiving import receive
from pipelines.deploy import rollout
from pipelines.params import EstimatorParams
from pipelines.params_file import load_params
from tests.conformance.table import (
    CASE,
    EVERYTHING,
    TEXT,
    WINDOW,
    bundle_of,
    declare,
    delivered,
    installed,
    own_answers,
    sent,
)
from tests.serving.gateway.world import KEY, client, release

pytestmark = pytest.mark.slow
FIELDS = declare(*EVERYTHING, TEXT)
FAMILIES = (None, "sklearn:LogisticRegression", "lightgbm")
"""The network, and estimators that read the text's words."""


@pytest.mark.parametrize("family", FAMILIES)
def test_triton_answers_what_the_model_answers(family, triton_server, tmp_path):
    """Offered and proved on rows with holes, the version then answers them behind the gateway as the model does."""
    version = 1 + FAMILIES.index(family)
    home, ports = triton_server
    # A ledger of its own: other modules use the same Triton, and begin with theirs.
    settings = embedded.settings(home, ports).model_copy(update={"ledger_url": f"sqlite:///{tmp_path}/ledger.db"})
    with installed(tmp_path, FIELDS):
        rows = receive(delivered(FIELDS, rows=60), FIELDS, WINDOW, load_params(CASE)).rows
        bundle = tmp_path / "bundle"
        model = bundle_of(FIELDS, rows, bundle, family and EstimatorParams(kind="estimator", family=family))
        about = json.loads((bundle / "bundle.json").read_text()) | {"dataset_key": "data-1"}
        (bundle / "bundle.json").write_text(json.dumps(about))
        as_of = datetime(2024, 1, version, tzinfo=UTC)
        storage.commit(
            settings.run_dir(CASE, as_of) / "dataset",
            case=CASE,
            as_of=as_of,
            key="data-1",
            inputs={},
            build=lambda folder: rows.write_parquet(folder / "holdout.parquet") or {},
        )
        folder = release(
            settings, version, case=CASE, fill=lambda work: shutil.copytree(bundle, work, dirs_exist_ok=True)
        )
        rollout.offer(settings, FIELDS, version, folder)
        (home / "api_key").write_text(KEY + "\n")
        with client(settings) as http:
            found = http.post(f"/v1/cases/{CASE}/predict", json={"rows": sent(FIELDS, rows)})
        assert found.status_code == 200, found.text
        own = own_answers(model, FIELDS, rows, bundle)[:, 0]
        assert np.abs(np.array([row["score"] for row in found.json()["rows"]]) - own).max() <= 1e-5
