"""A gateway's surroundings for tests: a state folder with key and releases, and a Triton that is only a servicer."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import grpc
import httpx
import numpy as np
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from pipelines import ledger, storage
from pipelines.cases import load_fields
from pipelines.cases.loans.source import generate
from pipelines.contracts import Order, Trial
from pipelines.files import file_sha256
from pipelines.settings import Settings
from pipelines.text import TOKENIZER
from serving.gateway.app import create_app
from serving.gateway.settings import Bounds

T = TypeVar("T")
KEY = "a-key-for-tests"
CASE = "loans"
FIELDS = load_fields(CASE)
PREDICT = f"/v1/cases/{CASE}/predict"
LABELS = f"/v1/cases/{CASE}/labels"
FIGURES = f"/v1/cases/{CASE}/figures"


class Scores(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers like Triton: ``score`` of a row is a function of its version and its values.

    Other versions than ``loaded`` are unknown.
    """

    def __init__(self):
        self.loaded = {1, 2, 3}
        self.rows = 0
        self.sizes = []

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if int(request.model_version) not in self.loaded:
            context.abort(
                grpc.StatusCode.UNAVAILABLE,
                (
                    f"Request for unknown model: '{request.model_name}' version {request.model_version} is not at "
                    "ready "
                    "state"
                ),
            )
        shapes = [list(tensor.shape) for tensor in request.inputs]
        categorical = np.frombuffer(request.raw_input_contents[0], np.int64).reshape(shapes[0])
        numeric = np.frombuffer(request.raw_input_contents[1], np.float32).reshape(shapes[1])
        self.rows += len(numeric)
        self.sizes.append(len(numeric))
        scores = expected(categorical, numeric, int(request.model_version))
        return pb.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version, raw_output_contents=[scores.tobytes()]
        )


def expected(categorical, numeric, version):
    """The scores [B, 1] of :class:`Scores`."""
    return (
        (1 / (1 + np.exp(-(categorical.sum(1) - 8 + numeric.sum(1) * 1e-6 + version))))
        .astype(np.float32)
        .reshape(-1, 1)
    )


@contextmanager
def fake_triton(port: int = 0, servicer: Scores | None = None) -> Iterator[tuple[Scores, int]]:
    """A gRPC server with :class:`Scores` (or another ``servicer``); yields it and its port."""
    servicer = servicer or Scores()
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield servicer, port
    finally:
        server.stop(None).wait()


def make_home(home: Path, port: int = 1, **settings) -> Settings:
    """A state folder with an API key, its Triton at ``port``."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "api_key").write_text(KEY + "\n")
    return Settings(home=home, triton_grpc=f"127.0.0.1:{port}", **settings)


def bundle(
    settings: Settings,
    version: int,
    *,
    case: str = CASE,
    fields_hash: str | None = None,
    fill: Callable[[Path], object] | None = None,
) -> Path:
    """The exported folder of a version (``fill`` puts more files into it)."""
    folder = settings.run_dir(case, datetime(2024, 1, version, tzinfo=UTC)) / "export"

    def build(work: Path) -> dict[str, str]:
        if fill is not None:
            fill(work)
        about = {"case": case, "fields_hash": fields_hash or load_fields(case).hash}
        if (work / "bundle.json").exists():
            about = json.loads((work / "bundle.json").read_text()) | about
        if (work / TOKENIZER).exists():
            about["tokenizer_sha256"] = file_sha256(work / TOKENIZER)
        (work / "bundle.json").write_text(json.dumps(about))
        return {}

    storage.commit(
        folder, case=case, as_of=datetime(2024, 1, version, tzinfo=UTC), key=f"key-{version}", inputs={}, build=build
    )
    return folder


def release(
    settings: Settings,
    version: int,
    *,
    case: str = CASE,
    action: str = "promote",
    fields_hash: str | None = None,
    fill: Callable[[Path], object] | None = None,
) -> Path:
    """Append a release to the ledger, its bundle in place (``fill`` puts more files into it); returns the bundle."""
    folder = bundle(settings, version, case=case, fields_hash=fields_hash, fill=fill)
    head = ledger.head(settings.ledger, case)
    seq = head.seq if head else 0
    ledger.append(
        settings.ledger,
        Order(
            case=case,
            after=seq,
            champion=version,
            candidate_key=f"key-{version}",
            bundle=str(folder.relative_to(settings.root)),
            action=action,
            trigger="manual",
            reason="a test",
            actor="a test",
            as_of=datetime(2024, 1, 1 + seq, tzinfo=UTC),
        ),
    )
    return folder


def roll_out(
    settings: Settings,
    version: int | None,
    weight: int = 5_000,
    *,
    case: str = CASE,
    stage: str = "canary",
    salt: str = "salt",
    action: str = "advance",
    fields_hash: str | None = None,
    verdict_hash: str | None = None,
    by_hand: bool = False,
    fill: Callable[[Path], object] | None = None,
    **plan: object,
) -> None:
    """Append a row of a rollout whose challenger is ``version`` (None: of one without, a soak), its bundle in place.

    ``plan``: its parameters, as a dump has them.
    """
    head = ledger.head(settings.ledger, case)
    assert head is not None
    number = head.champion if version is None else version
    folder = bundle(settings, number, case=case, fields_hash=fields_hash, fill=fill)
    now = datetime.now(UTC)
    trial = Trial(
        candidate_key=f"key-{number}",
        bundle=str(folder.relative_to(settings.root)),
        mlflow_run=None,
        verdict_hash=verdict_hash,
        trigger="drift",
        by_hand=by_hand,
        as_of=head.as_of,
        plan={"key": None, "mirror": False, **plan},
        step=0,
        opened=now,
        since=now,
    )
    about = head.model_dump(include={"case", "champion", "candidate_key", "bundle", "as_of"})
    told = {"trigger": "drift", "reason": "a test", "actor": "a test", "action": action, "stage": stage, "salt": salt}
    ledger.append(
        settings.ledger,
        Order(**about, **told, after=head.seq, challenger=version, weight=weight, trial=trial),
    )


def end(settings: Settings, *, case: str = CASE, action: str = "abort") -> None:
    """Append the row that ends a rollout: nothing is under way any more."""
    head = ledger.head(settings.ledger, case)
    assert head is not None
    about = head.model_dump(include={"case", "champion", "candidate_key", "bundle", "as_of", "trigger"})
    ledger.append(settings.ledger, Order(**about, action=action, reason="a test", actor="a test", after=head.seq))


@contextmanager
def client(settings: Settings, **bounds) -> Iterator[httpx.Client]:
    """A gateway of this process, behind a real socket; the client sends the key along."""
    app = create_app(settings, Bounds(**{"poll_seconds": 0.05, "sync_seconds": 0.05, "ready_seconds": 0.05, **bounds}))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="serving.gateway.turns:Loop",
                http="serving.gateway.connections:Connection",
                ws="none",
                log_level="error",
            )
        )
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        assert thread.is_alive(), "the gateway did not start"
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
                headers={"X-API-Key": KEY},
                timeout=30,
                trust_env=False,
                verify=False,  # plain HTTP: whom TLS trusts takes 45 ms to read
            ) as http:
                yield http
        finally:
            server.should_exit = True
            thread.join()


def until(holds: Callable[[], T], seconds: float = 20.0) -> T:
    """Poll until ``holds()`` is true; returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
    return found


def some_rows(count: int, day: int = 1) -> list[dict]:
    """Valid rows of the loans case."""
    frame = generate(datetime(2024, 3, day).date(), rows_per_day=count, seed=7)
    return frame.select(FIELDS.names).to_dicts()


def lines(settings: Settings, kind: str = "predictions", case: str = CASE) -> list[dict]:
    """All whole lines of the log, open segments included."""
    found = []
    for path in sorted((settings.prediction_log / case / kind).glob("[!.]*.jsonl*")):
        found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return found


def counted(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == f"perennial_gateway_{name}"]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
