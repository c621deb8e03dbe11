"""A version from MLflow in an environment that holds its own requirements and nothing else: loaded, and served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pandas as pd
import pytest

from embedded.ports import HOST
from pipelines import answering, storage
from pipelines.cases import load_fields
from pipelines.fields import to_json
from pipelines.files import file_sha256
from pipelines.problems import allowed
from pipelines.settings import Settings
from pipelines.text import TOKENIZER
from tests.package import called, environment
from tests.pipelines.candidates import write_onnx
from tests.pipelines.conftest import free_port
from tests.pipelines.registry.packed import recorded
from tests.serving.gateway.world import until
from tests.texts import some_texts, write_text_bundle

pytestmark = [pytest.mark.slow, pytest.mark.long]
PACKAGES = {
    "bank": {"mlflow-skinny", "numpy", "onnxruntime", "pandas", "pydantic"},
    "triage": {"mlflow-skinny", "numpy", "onnxruntime", "pandas", "pydantic", "tokenizers"},
}
OFFLINE = ("error sending request", "dns error", "NewConnectionError")
LOAD = """
import json, sys
import mlflow, pandas

assert not {"pipelines", "polars", "torch", "sklearn", "msgspec"} & set(sys.modules)
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(pandas.read_json(sys.argv[2], orient="split")).to_dict("records")))
"""


def _write(case, folder):
    fields = load_fields(case)
    about = {"fields_hash": fields.hash}
    if fields.text is None:
        write_onnx(folder / "model.onnx", fields, 0.1)
    else:
        write_text_bundle(folder, outputs=len(fields.classes), seed=0)
        about["tokenizer_sha256"] = file_sha256(folder / TOKENIZER)
    (folder / answering.FIELDS).write_text(json.dumps(to_json(fields)))
    (folder / "bundle.json").write_text(json.dumps(about))
    return {}


def _frame(fields):
    """Rows that are answered, and one that is not."""
    good = {field.name: allowed(field) for field in fields.fields}
    if fields.text is None:
        rows = [good | {"age": age} for age in range(17, 60)]
        return pd.DataFrame([*rows, good | {"age": 5}])
    return pd.DataFrame([good | {fields.text.name: text} for text in (*some_texts(30), "")])


@pytest.fixture(scope="module", params=PACKAGES)
def champion(request, mlflow_url, tmp_path_factory):
    """The case, its bundle, and the `bin` of an environment with what its version's requirements.txt names."""
    import mlflow

    case, home = request.param, tmp_path_factory.mktemp("alone")
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    bundle = home / "run" / "export"
    storage.commit(bundle, case=case, as_of=moment, key="k", inputs={}, build=partial(_write, case))
    client = mlflow.MlflowClient(mlflow_url, mlflow_url)
    version = recorded(Settings(home=home, mlflow_url=mlflow_url), case, bundle)
    client.set_registered_model_alias(case, "champion", str(version))
    mlflow.set_tracking_uri(mlflow_url)
    listed = mlflow.pyfunc.get_model_dependencies(f"models:/{case}@champion")
    names = {line.partition("==")[0] for line in Path(listed).read_text().split()}
    assert names == PACKAGES[case]
    place = home / "venv"
    tool = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if tool is None:
        called([sys.executable, "-m", "venv", place], home)
        install = [place / "bin" / "pip", "install", "-q", "-r", listed]
    else:
        called([tool, "venv", "-q", "--python", sys.executable, place], home)
        install = [tool, "pip", "install", "-q", "--python", place / "bin" / "python", "-r", listed]
    done = subprocess.run(list(map(str, install)), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode and any(word in done.stderr for word in OFFLINE):
        pytest.skip(f"no package index answers: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    yield case, bundle, place / "bin"
    client.delete_registered_model_alias(case, "champion")


def test_it_is_loaded_by_its_alias(champion, mlflow_url, tmp_path):
    """`load_model("models:/<case>@champion")` answers raw rows as the project does, the refused one with its reason."""
    case, bundle, programs = champion
    frame = _frame(load_fields(case))
    frame.to_json(tmp_path / "rows.json", orient="split")
    command = [programs / "python", "-c", LOAD, f"models:/{case}@champion", tmp_path / "rows.json"]
    found = json.loads(called(command, tmp_path, MLFLOW_TRACKING_URI=mlflow_url))
    assert found == answering.load(bundle).predict(frame).to_dict("records")
    assert [row["problem"] is None for row in found] == [True] * (len(frame) - 1) + [False]


def test_it_is_served(champion, mlflow_url, tmp_path):
    """`mlflow models serve` answers the same rows in the same way, in each of the forms that it takes rows in."""
    case, bundle, programs = champion
    frame, port = _frame(load_fields(case)), free_port()
    command = [programs / "mlflow", "models", "serve", "-m", f"models:/{case}@champion", "--env-manager", "local"]
    more = {"MLFLOW_TRACKING_URI": mlflow_url, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*map(str, command), "-h", HOST, "-p", str(port), "-w", "1"],
            cwd=tmp_path,
            env=environment(**more),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60, trust_env=False) as http:
            until(lambda: _answers(http, server, tmp_path / "log"), seconds=120)
            expected = answering.load(bundle).predict(frame).to_dict("records")
            records = frame.to_dict("records")
            split = {"columns": list(frame.columns), "data": frame.to_numpy().tolist()}
            for body in ({"dataframe_records": records}, {"dataframe_split": split}, {"inputs": records}):
                answer = http.post("/invocations", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["predictions"] == expected
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _answers(http, server, log):
    assert server.poll() is None, log.read_text()
    try:
        return http.get("/ping").status_code == 200
    except httpx.TransportError:
        return False
