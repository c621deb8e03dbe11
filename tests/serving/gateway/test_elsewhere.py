"""Every case: a thousand raw rows of its own source get one answer, from the gateway by any protocol and from MLflow.

The gateway runs in this process in front of the real Triton; MLflow is a real server, whose copy is downloaded, and
loaded by the code that came with it. Models are of the cases' own kinds: estimators learn from the rows, networks have
the weights that they begin with, but for a last layer of zeros.
"""

from __future__ import annotations

import shutil
import socket
from dataclasses import asdict
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http

from embedded import triton as embedded
from pipelines.cases import build_model, load_fields, part
from pipelines.cases.delivery import from_source
from pipelines.contracts import Window
from pipelines.deploy import repository, triton
from pipelines.encoding import encode, find_scales
from pipelines.errors import DataError
from pipelines.estimators.families import Running
from pipelines.estimators.fitting import Labelled, fit
from pipelines.export.bundle import write_bundle
from pipelines.export.onnx import of_estimator, of_torch
from pipelines.fields import row_sent
from pipelines.params import EstimatorParams
from pipelines.params_file import load_params
from pipelines.settings import Settings
from pipelines.training.estimator import encoded
from tests.pipelines.registry.packed import recorded
from tests.serving.gateway.protocol import inputs
from tests.serving.gateway.world import KEY, client, counted, make_home, release, until

pytestmark = pytest.mark.slow
DAYS = {"bank": 30, "flights": 10, "flights_late": 10, "loans": 3, "triage": 200, "triage_fields": 200}
"""Every case, and from how many of its days rows are taken."""
ROWS = 1_000


def _rows(case, tmp_path):
    """Canonical labelled rows of the case's own source."""
    params, fields = load_params(case), load_fields(case)
    start = params.period[0]
    window = Window(start=start, end=start + timedelta(days=DAYS[case]))
    try:
        rows = from_source(part(case, "source"), fields, params, Settings(home=tmp_path)).read(window).rows
    except DataError as error:
        pytest.skip(f"the rows of {case} are not here: {error}")
    rows = rows.filter(pl.col(fields.label).is_not_null())
    assert rows.height >= ROWS
    return rows


def _write(case, rows, folder):
    """The bundle of a model of the case's own kind."""
    import torch

    fields, params = load_fields(case), load_params(case)
    columns = rows.select(fields.reads).to_dict(as_series=False)
    scales = find_scales(fields, columns) if fields.has_table else {}
    if isinstance(params.model, EstimatorParams):
        labelled = Labelled(encoded(params.model, fields, columns, scales, folder), rows[fields.label].to_numpy())
        trained = of_estimator(fit(params.model, fields, labelled, Running(seed=0, threads=1)), fields)
    else:
        torch.manual_seed(0)
        if fields.text is not None:
            part(case, "model").tokenizer(params.model, folder)
        model = build_model(case, params.model, fields)
        if fields.has_table:
            labels = torch.tensor(rows[fields.label].to_list())
            model.adapt(torch.from_numpy(encode(fields, columns, scales)["numeric"]), labels)
        for weights in model.parameters():
            if not weights.any():
                torch.nn.init.normal_(weights, std=0.5)
        trained = of_torch(model.eval(), fields)
    write_bundle(trained, fields, folder, {"scales": {name: asdict(scale) for name, scale in scales.items()}})


def _by_protocol(caller, module, case, sent, **options):
    """What the Open Inference Protocol's client is answered: the rows as /v1 has them."""
    about = caller.get_model_metadata(case, **options)["inputs"]
    found = caller.infer(case, inputs(module, about, sent), headers={"x-api-key": KEY})
    prediction, score = found.as_numpy("prediction"), found.as_numpy("score")
    named = [value.decode() if isinstance(value, bytes) else value for value in prediction.tolist()]
    return list(zip(named, score.tolist(), strict=True)) if score is not None else [(value,) for value in named]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.long] if load_fields(case).text is not None else []) for case in DAYS],
)
def test_gateway_and_mlflow_answer_alike(case, triton_server, mlflow_url, tmp_path):
    """Prediction and score of all rows, to the bit: /v1, the protocol over REST and gRPC, and MLflow's copy."""
    import mlflow

    fields, rows = load_fields(case), _rows(case, tmp_path)
    home, ports = triton_server
    settings = make_home(
        home,
        ports.triton_grpc,
        triton_client=embedded.settings(home, ports).triton_client,
        mlflow_url=mlflow_url,
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
    )
    work = tmp_path / "work"
    work.mkdir()
    _write(case, rows, work)
    bundle = release(settings, 1, case=case, fill=lambda to: shutil.copytree(work, to, dirs_exist_ok=True))
    repository.stage(settings.model_repository, case, 1, bundle)
    repository.configure(settings.model_repository, fields, [1])
    triton.load(settings, case)
    rows = rows[np.linspace(0, rows.height - 1, ROWS).astype(int).tolist()]
    sent = [
        {**row_sent(fields, row), "event_time": row["event_time"].isoformat()} for row in rows.iter_rows(named=True)
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (
        client(settings, deadline_seconds=60.0, grpc=address) as http,
        by_http.InferenceServerClient(http.base_url.netloc.decode(), network_timeout=120.0) as rest,
        by_grpc.InferenceServerClient(address) as rpc,
    ):
        until(lambda: counted(http, "champion_version", case=case) == 1)
        answer = http.post(f"/v1/cases/{case}/predict", json={"rows": sent}, timeout=120)
        assert answer.status_code == 200, answer.text
        protocols = [_by_protocol(rest, by_http, case, sent), _by_protocol(rpc, by_grpc, case, sent, as_json=True)]
    triton.unload(settings, case)
    mlflow.set_tracking_uri(mlflow_url)
    model = mlflow.pyfunc.load_model(f"models:/{case}/{recorded(settings, case, bundle)}")
    found = model.predict(rows.select("event_time", *fields.names).to_pandas())
    assert found["problem"].isna().all()
    names = ["prediction"] if fields.number is not None else ["prediction", "score"]
    told = [tuple(row[name] for name in names) for row in answer.json()["rows"]]
    assert list(found[names].itertuples(index=False, name=None)) == told
    assert protocols == [told, told]
    assert len({row[-1] for row in told}) > 100
