"""The chain champion, previous release, declared default: who is answered with what, and how it is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
import yaml

from pipelines import ledger
from pipelines.cases import file_of, load_fields
from serving.gateway import tensors
from tests.serving.gateway import protocol
from tests.serving.gateway.test_retired import WHY
from tests.serving.gateway.world import (
    FIELDS,
    KEY,
    PREDICT,
    Scores,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

ROWS = some_rows(3)
NAMED = [{**row, "prediction_id": f"a-{number}"} for number, row in enumerate(ROWS)]


class Choosy(Scores):
    """A Triton without some versions, all of them where ``away``."""

    def __init__(self):
        super().__init__()
        self.away = False

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if self.away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return super().ModelInfer(request, context)


@contextmanager
def gateway(folder, monkeypatch, serving, versions=(1, 2), triton=None, **bounds):
    """``(http, settings, triton)`` of a gateway whose case loans is served as ``serving`` says."""
    params = folder / "params"
    params.mkdir()
    write(params, serving)
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(params))
    with fake_triton(servicer=triton or Choosy()) as (servicer, port):
        settings = make_home(folder / "home", port, params_dir=params)
        for version in versions:
            release(settings, version)
        with client(settings, cases_seconds=0.1, **bounds) as http:
            yield http, settings, servicer


def write(params, serving):
    """Declare how loans is served."""
    own = yaml.safe_load(file_of("loans", "params.yaml").read_text())
    (params / "loans.yaml").write_text(yaml.safe_dump(own | {"serving": serving}))


def test_the_chain_goes_from_the_champion_to_the_default(tmp_path, monkeypatch):
    """The champion answers, else the previous release, else the default, which is flagged, counted and logged as such.

    A metric says that somebody stands in, whoever it is. Lines of versions have no trace of it, and the champion
    answers again as soon as it can.
    """
    with gateway(tmp_path, monkeypatch, {"default": 0.75}) as (http, settings, triton):
        found = []
        for loaded in ({1, 2}, {1}, set(), {1, 2}):
            triton.loaded = loaded
            answer = http.post(PREDICT, json={"rows": ROWS})
            assert answer.status_code == 200
            assert counted(http, "fallback", case="loans") == (loaded != {1, 2})
            found.append(answer.json()["rows"])
        logged = lines(settings)
        assert [[row["version"] for row in rows] for rows in found] == [[2] * 3, [1] * 3, [0] * 3, [2] * 3]
        assert all("default" not in row for rows in (*found[:2], found[3]) for row in rows)
        assert all((row["default"], row["score"], row["prediction"]) == (True, 0.75, 1) for row in found[2])
        assert [line["prediction_id"] for line in logged] == [row["prediction_id"] for rows in found for row in rows]
        own = [line for line in logged if "outcome" in line]
        assert [(line["outcome"], line["version"], line["score"]) for line in own] == [("default", 0, 0.75)] * 3
        assert [line["row"] for line in own] == [line["row"] for line in logged[:3]]
        assert counted(http, "default_rows_total", case="loans") == 3
        assert counted(http, "rows_total", case="loans") == 9
        assert counted(http, "log_lines_total", case="loans", kind="predictions") == 12


def test_a_default_stands_in_for_a_champion_alone(tmp_path, monkeypatch):
    """A default that answers for a champion that cannot serve is told until its case is retired; before, for none."""
    with gateway(tmp_path, monkeypatch, {"default": 0.75}, versions=()) as (http, settings, _):
        assert http.post(PREDICT, json={"rows": ROWS}).json()["rows"][0]["default"]
        assert counted(http, "fallback", case="loans") == 0
        release(settings, 1, fields_hash="0" * 64)
        until(lambda: counted(http, "fields_refused", case="loans") == 1)
        assert http.post(PREDICT, json={"rows": ROWS}).json()["rows"][0]["default"]
        assert counted(http, "fallback", case="loans") == 1
        ledger.set_retired(settings.ledger, "loans", retired=True, reason="over", actor="ada")
        until(lambda: counted(http, "fallback", case="loans") == 0)


def test_without_a_declared_default_it_is_refused(tmp_path, monkeypatch):
    """No default is off: the request is 503, and nothing is logged."""
    with gateway(tmp_path, monkeypatch, {}) as (http, settings, triton):
        triton.loaded = set()
        assert http.post(PREDICT, json={"rows": ROWS}).status_code == 503
        assert lines(settings) == []


def test_a_default_stands_in_before_there_is_a_champion_and_not_for_a_retired_case(tmp_path, monkeypatch):
    """Rows before the first training are answered with the default; a retired case is 410 all the same."""
    with gateway(tmp_path, monkeypatch, {"default": 0.25}, versions=()) as (http, settings, _):
        [row, *_] = http.post(PREDICT, json={"rows": ROWS}).json()["rows"]
        assert (row["default"], row["prediction"], row["score"]) == (True, 0, 0.25)
        release(settings, 1)
        until(lambda: http.post(PREDICT, json={"rows": ROWS}).json()["rows"][0]["version"] == 1)
        ledger.set_retired(settings.ledger, "loans", retired=True, **WHY)
        until(lambda: http.post(PREDICT, json={"rows": ROWS}).status_code == 410)


def test_a_default_answer_is_kept_for_its_id(tmp_path, monkeypatch):
    """A row that is sent again gets the default that it got, flagged, also when the champion is back.

    So it is after a restart, from the log; other features under its id are 409, and one by one it is flagged, too.
    """
    with gateway(tmp_path, monkeypatch, {"default": 0.75}) as (http, settings, triton):
        triton.loaded = set()
        first = http.post(PREDICT, json={"rows": NAMED}).json()["rows"]
        triton.loaded = {1, 2}
        assert http.post(PREDICT, json={"rows": NAMED}).json()["rows"] == first
        assert http.post(f"{PREDICT}?partial=true", json={"rows": NAMED}).json()["rows"] == first
        assert all(row["default"] for row in first)
        assert http.post(PREDICT, json={"rows": [{**NAMED[0], "age": NAMED[0]["age"] + 1}]}).status_code == 409
        assert len(lines(settings)) == 3
    for path in (settings.root / "gateway").glob("*.db*"):
        path.unlink()
    with client(settings) as http:
        assert http.post(PREDICT, json={"rows": NAMED}).json()["rows"] == first
        assert len(lines(settings)) == 3


@pytest.mark.parametrize("module", [by_http, by_grpc])
def test_the_protocols_flag_it_too(tmp_path, monkeypatch, module):
    """The response has the parameter ``default`` where a row has the default, and only there.

    Who asks for one version is not answered by what stands in for it.
    """
    from embedded.ports import HOST, Ports

    address = f"{HOST}:{Ports.free().gateway_grpc}"
    with gateway(tmp_path, monkeypatch, {"default": 0.75}, grpc=address) as (http, _, triton):
        where = http.base_url.netloc.decode() if module is by_http else address
        with module.InferenceServerClient(where) as caller:

            def ask(version=""):
                about = [one._asdict() for one in tensors.inputs(FIELDS)]
                inputs = protocol.inputs(module, about, ROWS)
                found = caller.infer("loans", inputs, model_version=version, headers={"x-api-key": KEY})
                return found, found.get_response()

            found, response = ask()
            assert not (response.get("parameters") if module is by_http else response.parameters)
            triton.loaded = set()
            found, response = ask()
            if module is by_http:
                assert response["parameters"] == {"default": True}
            else:
                assert response.parameters["default"].bool_param
            assert found.as_numpy("version").tolist() == [0] * 3
            assert found.as_numpy("score").tolist() == [0.75] * 3
            with pytest.raises(Exception, match="not at ready state"):
                ask("2")


def test_an_outage_is_no_outage_where_a_default_is_declared(tmp_path, monkeypatch):
    """While Triton is away every request is answered, and what was accepted is what the log holds."""
    with gateway(tmp_path, monkeypatch, {"default": 0.75}) as (http, settings, triton):
        stop = threading.Event()

        def ask():
            found = []
            while not stop.is_set():
                answer = http.post(PREDICT, json={"rows": ROWS[:1]})
                found.append((answer.status_code, [row.get("default", False) for row in answer.json().get("rows", [])]))
            return found

        with ThreadPoolExecutor(4) as pool:
            going = [pool.submit(ask) for _ in range(4)]
            until(lambda: counted(http, "rows_total", case="loans") > 10)
            triton.away = True
            until(lambda: counted(http, "default_rows_total", case="loans") > 10)
            triton.away = False
            before = counted(http, "rows_total", case="loans")
            until(lambda: counted(http, "rows_total", case="loans") > before + 10)
            stop.set()
            found = [one for task in going for one in task.result()]
        assert {status for status, _ in found} == {200}
        assert sum(any(flags) for _, flags in found) == counted(http, "default_rows_total", case="loans")
        assert len(lines(settings)) == len(found)


def test_who_would_be_late_has_the_default(tmp_path, monkeypatch):
    """Where more rows wait than can be answered in time, a declared default is answered in place of a 503."""
    go = threading.Event()

    class Slow(Scores):
        def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
            """One inference."""
            go.wait(0.3)
            return super().ModelInfer(request, context)

    serving = {"default": 0.75, "slo": {"p99_ms": 400}}
    with gateway(tmp_path, monkeypatch, serving, triton=Slow()) as (http, _, _), ThreadPoolExecutor(8) as pool:
        assert http.post(PREDICT, json={"rows": ROWS}).json()["rows"][0]["version"] == 2
        found = list(pool.map(lambda _: http.post(PREDICT, json={"rows": ROWS}), range(16)))
        assert {answer.status_code for answer in found} == {200}
        versions = [answer.json()["rows"][0]["version"] for answer in found]
        assert versions.count(0) > 4
        assert versions.count(2) > 0


def test_where_tritons_queue_is_full_there_is_the_default(tmp_path, monkeypatch):
    """A model whose queue has no room is no outage, and is answered with the default all the same.

    Such answers are of no version in the metrics.
    """

    class Full(Scores):
        def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
            """One inference."""
            context.abort(grpc.StatusCode.UNAVAILABLE, "in ensemble, Exceeds maximum queue size")

    with gateway(tmp_path, monkeypatch, {"default": 0.75}, triton=Full()) as (http, _, _):
        answer = http.post(PREDICT, json={"rows": ROWS})
        assert [row["default"] for row in answer.json()["rows"]] == [True] * 3
        assert counted(http, "requests_total", case="loans", version="", status="200") == 1
        assert counted(http, "fallback", case="loans") == 0


def test_a_default_is_followed_and_a_wrong_one_is_none(tmp_path, monkeypatch):
    """A default that is declared later is answered within a moment; one that cannot be is told, and none is answered.

    What was declared before goes on then.
    """
    with gateway(tmp_path, monkeypatch, {}) as (http, settings, triton):
        triton.loaded = set()

        def asked():
            return http.post(PREDICT, json={"rows": ROWS})

        assert asked().status_code == 503
        write(settings.params_dir, {"default": 0.5})
        until(lambda: asked().status_code == 200)
        write(settings.params_dir, {"default": 5})
        until(lambda: "serving.default: 5 is no probability" in http.get("/readyz").json()["broken"].get("loans", ""))
        assert asked().json()["rows"][0]["score"] == 0.5


def test_classes_have_their_declared_probabilities(tmp_path, monkeypatch):
    """In a case with classes the likeliest class of the default is predicted, and all its probabilities are logged."""
    fields = load_fields("triage")
    chosen = dict.fromkeys(fields.classes, 0.0) | {fields.classes[1]: 0.75, fields.classes[0]: 0.25}
    params = tmp_path / "params"
    params.mkdir()
    own = yaml.safe_load(file_of("triage", "params.yaml").read_text())
    (params / "triage.yaml").write_text(yaml.safe_dump(own | {"serving": {"default": chosen}}))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(params))
    with fake_triton() as (_, port), client(make_home(tmp_path / "home", port)) as http:
        row = {field.name: "a text" for field in fields.fields}
        answer = http.post("/v1/cases/triage/predict", json={"rows": [row]})
        assert answer.status_code == 200, answer.text
        [found] = answer.json()["rows"]
        assert (found["prediction"], found["score"], found["default"]) == (fields.classes[1], 0.75, True)
    [line] = lines(make_home(tmp_path / "home", port), case="triage")
    assert line["scores"] == [chosen[name] for name in fields.classes]
