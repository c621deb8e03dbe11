"""The gateway follows the cases: new, mended, changed and removed ones without a restart; broken ones stop alone."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
import yaml

from pipelines.cases import load_fields
from serving.gateway import cases as gateway_cases
from tests import shop
from tests.serving.gateway.world import Scores, client, counted, fake_triton, lines, make_home, release, until

ROW = {"colour": "red", "price": 10.0, "weight": 2.5}
SHOP, DESK, LAMP = ({"case": name} for name in ("shop", "desk", "lamp"))
FAST = {"cases_seconds": 0.05}


@pytest.fixture
def world(tmp_path):
    """``(root, settings, triton)``: the whole cases shop and desk, version 1 of desk released, a Triton."""
    with shop.installed(tmp_path / "cases") as root, fake_triton() as (triton, port):
        for name in ("shop", "desk"):
            shop.write(root, name)
        settings = make_home(tmp_path / "home", port, log_segment_seconds=0.5)
        release(settings, 1, case="desk")
        yield root, settings, triton


def ask(http, case, **row):
    """The answer to one row."""
    return http.post(f"/v1/cases/{case}/predict", json={"rows": [{**ROW, **row}]})


BREAKAGES = {
    "syntax error": ("schema.py", "FIELDS = Fields((\n", "SyntaxError"),
    "field that no request can have": ("schema.py", shop.SCHEMA.replace('"price"', '"house-value"'), "house-value"),
    "empty vocabulary": ("schema.py", shop.SCHEMA.replace('("red", "blue")', "()"), "colour"),
    "name that the gateway uses": ("schema.py", shop.SCHEMA.replace('"price"', '"prediction_id"'), "prediction_id"),
    "another case's fields": ("schema.py", shop.SCHEMA.replace('"shop"', '"desk"'), "desk"),
    "not UTF-8": ("params.yaml", "caf\udce9", "UTF-8"),
    "missing": ("schema.py", None, "schema.py is missing"),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_case_stops_alone(world, kind):
    """Whatever is wrong with one case, the other is answered; it is 503 with the reason, and named by /readyz."""
    root, settings, _ = world
    file, text, words = BREAKAGES[kind]
    path = root / "shop" / file
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with client(settings, **FAST) as http:
        assert ask(http, "desk").status_code == 200
        answer = ask(http, "shop")
        if file == "schema.py":
            assert answer.status_code == 503
            assert words in answer.json()["error"]
        ready = http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["broken"].keys() == {"shop"}
        assert words in ready.json()["broken"]["shop"]
        assert ready.json()["cases"] == {"desk": {"champion": 1, "ready": True}}
        assert (counted(http, "case_broken", **SHOP), counted(http, "case_broken", **DESK)) == (1, 0)
        assert http.post("/v1/cases/nothing/predict", json={"rows": [ROW]}).status_code == 404


def test_a_case_that_is_added_is_answered_without_a_restart(world):
    """A case that comes while two workers run, and is promoted then, is answered by both: after 404 and 503."""
    root, settings, _ = world
    with client(settings, **FAST) as http, client(settings, **FAST) as other:
        assert {one.post("/v1/cases/lamp/predict", json={"rows": [ROW]}).status_code for one in (http, other)} == {404}
        shop.write(root.parent / "aside", "lamp").rename(root / "lamp")
        for one in (http, other):
            until(lambda one=one: ask(one, "lamp").status_code == 503)
            assert "no champion yet" in ask(one, "lamp").json()["error"]
        release(settings, 1, case="lamp")
        for one in (http, other):
            until(lambda one=one: ask(one, "lamp").status_code == 200)
            assert one.get("/readyz").json()["cases"]["lamp"] == {"champion": 1, "ready": True}
        labels = http.post("/v1/cases/lamp/labels", json={"labels": [{"prediction_id": "a", "label": 1}]})
        assert labels.status_code == 200
    assert len(lines(settings, case="lamp")) == 2
    assert len(lines(settings, "labels", case="lamp")) == 1


def test_a_mended_case_is_taken_up(world):
    """A case that was broken at the start serves once its schema is mended, and is no longer named."""
    root, settings, _ = world
    release(settings, 1, case="shop")
    path = root / "shop" / "schema.py"
    shop.edit(path, ("Fields(\n", "Fields((\n"))
    with client(settings, **FAST) as http:
        assert ask(http, "shop").status_code == 503
        shop.edit(path, ("Fields((\n", "Fields(\n"))
        until(lambda: ask(http, "shop").status_code == 200)
        assert http.get("/readyz").json()["broken"] == {}
        assert counted(http, "case_broken", **SHOP) == 0


def test_a_case_that_breaks_goes_on_as_it_was(world):
    """A mistake that is saved while a case is served takes no answers: the last good copy serves, /readyz names it."""
    root, settings, _ = world
    with client(settings, **FAST) as http:
        assert ask(http, "desk").status_code == 200
        shop.edit(root / "desk" / "schema.py", ("Fields(\n", "Fields((\n"))
        shop.edit(root / "shop" / "source.py", ("def rows", "def lines"))
        until(lambda: http.get("/readyz").json()["broken"].keys() == {"desk", "shop"})
        assert ask(http, "desk").status_code == 200
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["cases"]["desk"]["ready"]) == (200, True)
        assert counted(http, "case_broken", **DESK) == 1


def test_a_changed_case_is_asked_as_it_is_declared_now(world):
    """A schema that changes is followed: the new field is wanted, and a champion of the old fields is refused."""
    root, settings, _ = world
    with client(settings, **FAST) as http:
        assert ask(http, "desk").status_code == 200
        shop.edit(
            root / "desk" / "schema.py", ('Numeric("price", 0, 1000)', 'Numeric("price", 0, 1000), Numeric("size")')
        )
        until(lambda: ask(http, "desk").status_code == 422)
        assert "size: missing" in ask(http, "desk").json()["error"]
        refused = ask(http, "desk", size=1.0)
        assert (refused.status_code, "other fields" in refused.json()["error"]) == (503, True)
        # Its hash is taken as any other process takes it.
        release(settings, 2, case="desk", fields_hash=load_fields("desk").hash)
        until(lambda: ask(http, "desk", size=1.0).status_code == 200)
    assert {tuple(sorted(line["row"])) for line in lines(settings, case="desk")} == {
        tuple(sorted(ROW)),
        tuple(sorted({**ROW, "size": 1.0})),
    }


def test_an_answered_row_is_known_in_any_order_of_fields(world):
    """A row that is sent again once its fields stand in another order is still that row, and one that swaps them not.

    Both to a gateway that was there, and to one that starts.
    """
    root, settings, _ = world
    fields = 'Numeric("price", 0, 1000)', 'Numeric("weight", 0, 1000)'
    with client(settings, **FAST) as http:
        first = ask(http, "desk", prediction_id="one").json()["rows"]
        shop.edit(root / "desk" / "schema.py", (", ".join(fields), ", ".join(fields[::-1])))
        until(lambda: "other fields" in ask(http, "desk").text)
        release(settings, 2, case="desk", fields_hash=load_fields("desk").hash)
        until(lambda: ask(http, "desk").status_code == 200)
        _is_known(http, first)
    with client(settings, **FAST) as http:
        _is_known(http, first)


def _is_known(http, first):
    assert ask(http, "desk", prediction_id="one").json()["rows"] == first
    swapped = ask(http, "desk", prediction_id="one", price=ROW["weight"], weight=ROW["price"])
    assert (swapped.status_code, "one" in swapped.text) == (409, True)


def test_a_removed_case_is_answered_404_and_its_log_is_closed(world):
    """A case whose folder goes is unknown soon and its young segments are closed; it serves if it comes again."""
    root, settings, _ = world
    settings = settings.model_copy(update={"log_segment_seconds": 3600.0})
    with client(settings, **FAST) as http:
        assert ask(http, "desk", prediction_id="one").status_code == 200
        (root / "desk").rename(root.parent / "aside")
        until(lambda: ask(http, "desk", prediction_id="one").status_code == 404)
        assert "desk" not in http.get("/readyz").text
        assert counted(http, "champion_version", **DESK) == 0
        folder = settings.prediction_log / "desk" / "predictions"
        until(lambda: not list(folder.glob("*.open")) and list(folder.glob("*.jsonl")))
        (root.parent / "aside").rename(root / "desk")
        until(lambda: ask(http, "desk", prediction_id="one").status_code == 200)
        assert ask(http, "desk", prediction_id="two").status_code == 200
    assert sorted(line["prediction_id"] for line in lines(settings, case="desk")) == ["one", "two"]


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_requests_on_their_way_are_unharmed(world, change):
    """A request that was let in before its case went or changed is answered by its version, logged, and closed."""
    root, settings, _ = world
    settings = settings.model_copy(update={"log_segment_seconds": 3600.0})
    answers = []
    with fake_triton(servicer=Held()) as (triton, port):
        settings = settings.model_copy(update={"triton_grpc": f"127.0.0.1:{port}"})
        _one_is_answered_late(root, settings, triton, change, answers)
    assert (answers[0].status_code, answers[0].json()["rows"][0]["version"]) == (200, 1)
    assert len(lines(settings, case="desk")) == 1


class Held(Scores):
    """A Triton that answers once it may."""

    def __init__(self):
        super().__init__()
        self.asked, self.may = threading.Event(), threading.Event()

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference, when it may."""
        self.asked.set()
        assert self.may.wait(20)
        return super().ModelInfer(request, context)


def _one_is_answered_late(root, settings, triton, change, answers):
    with client(settings, **FAST, deadline_seconds=30) as http:
        one = threading.Thread(target=lambda: answers.append(ask(http, "desk")))
        one.start()
        assert triton.asked.wait(20)
        if change == "removed":
            shutil.rmtree(root / "desk")
            until(lambda: http.post("/v1/cases/desk/predict", json={"rows": []}).status_code == 404)
        else:
            shop.edit(root / "desk" / "schema.py", ('"red", "blue"', '"blue", "red", "gray"'))
            until(lambda: ask(http, "desk", colour="gray").status_code == 503)
        time.sleep(0.3)  # several rounds of the log's keeper
        triton.may.set()
        one.join()
        folder = settings.prediction_log / "desk" / "predictions"
        until(lambda: not list(folder.glob("*.open")))


def test_a_case_has_a_deadline_of_its_own(world):
    """A case's ``serving.deadline_seconds`` holds from the next look at its parameters, and for that case alone."""
    root, settings, _ = world
    slow = Held()
    with fake_triton(servicer=slow) as (_, port):
        settings = settings.model_copy(update={"triton_grpc": f"127.0.0.1:{port}"})
        release(settings, 1, case="shop")
        with client(settings, **FAST, deadline_seconds=20) as http:
            path = root / "desk" / "params.yaml"
            path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"serving": {"deadline_seconds": 0.2}}))
            time.sleep(0.5)  # several looks
            begun = time.monotonic()
            late = ask(http, "desk")
            assert time.monotonic() - begun < 5
            assert (late.status_code, "serving.deadline_seconds" in late.json()["error"]) == (503, True)
            threading.Timer(1.0, slow.may.set).start()
            assert ask(http, "shop").status_code == 200


def test_what_a_case_promises_is_told_as_it_is_declared(world):
    """``serving.slo`` is told from the next look on, for that case alone, and no more when the case is removed."""
    root, settings, _ = world
    with client(settings, **FAST) as http:
        path = root / "desk" / "params.yaml"
        slo = {"serving": {"slo": {"p99_ms": 50, "errors": 0.002}}}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | slo))
        until(lambda: counted(http, "slo_seconds", case="desk", quantile="0.99") == 0.05)
        told = http.get("/metrics").text
        assert counted(http, "slo_errors", case="desk") == 0.002
        assert counted(http, "slo_errors", case="shop") == 0.01
        assert "slo_seconds{" in told
        assert 'slo_seconds{case="shop"' not in told
        shutil.rmtree(root / "desk")
        until(lambda: 'slo_errors{case="desk"' not in http.get("/metrics").text)


def test_a_log_that_cannot_be_written_is_tried_again(world, monkeypatch):
    """A whole case whose log cannot be made is 503 with the reason, the others answer, and it is tried again."""
    root, settings, _ = world
    adopt = gateway_cases.adopt
    away = True

    def failing(folder):
        if away and folder.parent.name == "lamp":
            raise OSError("no space left on device")
        return adopt(folder)

    monkeypatch.setattr(gateway_cases, "adopt", failing)
    with client(settings, **FAST) as http:
        shop.write(root.parent / "aside", "lamp").rename(root / "lamp")
        until(lambda: counted(http, "case_broken", **LAMP) == 1)
        assert "no space left" in ask(http, "lamp").json()["error"]
        assert ask(http, "desk").status_code == 200
        away = False
        until(lambda: "no champion yet" in ask(http, "lamp").json()["error"])


def test_the_request_path_opens_no_file_of_a_case(world, monkeypatch):
    """Between two looks at the folders requests are answered without them: nothing of a case is read for a request."""
    root, settings, _ = world
    with client(settings, cases_seconds=3600) as http:
        assert ask(http, "desk").status_code == 200
        shutil.rmtree(root)
        assert ask(http, "desk").status_code == 200
        assert http.post("/v1/cases/lamp/predict", json={"rows": [ROW]}).status_code == 404
