"""What is logged of a case keeps its meaning: classes are only added at the end, and who breaks that is told."""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from pipelines.cases import kept_target, load_fields
from pipelines.errors import ConfigError
from pipelines.fields import to_json
from tests import shop
from tests.serving.gateway.test_cases import FAST, ask
from tests.serving.gateway.world import Scores, client, fake_triton, lines, make_home, release, until

CLASSES = '("new", "used", "broken")'
ORDERS = {
    "another order": ('("used", "new", "broken")', "0 was 'new'"),
    "one is cut": ('("new", "used")', "2 was 'broken' (prediction_log/shop/target.json) and is no class now"),
    "another name": ('("new", "old", "broken")', "1 was 'used' (prediction_log/shop/target.json) and is 'old' now"),
}


class Likeliest(Scores):
    """A Triton for which the second of three classes is the likeliest, whatever a row is."""

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        rows = request.inputs[0].shape[0]
        scores = np.tile(np.array([0.2, 0.7, 0.1], np.float32), (rows, 1))
        return pb.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version, raw_output_contents=[scores.tobytes()]
        )


@pytest.fixture
def world(tmp_path):
    """``(root, settings)``: shop with three classes and version 1 of it released, desk without any, a Triton."""
    with shop.installed(tmp_path / "cases") as root, fake_triton(servicer=Likeliest()) as (_, port):
        for name in ("shop", "desk"):
            shop.write(root, name)
        shop.edit(root / "shop" / "schema.py", ('label="sold",', f'label="kind", classes={CLASSES},'))
        settings = make_home(tmp_path / "home", port)
        release(settings, 1, case="shop", fill=_fields)
        release(settings, 1, case="desk")
        yield root, settings


def _fields(folder):
    (folder / "fields.json").write_text(json.dumps(to_json(load_fields("shop"))))


def declare(root, before, now):
    """Declare other classes, in a file that is never seen half."""
    edit(root / "shop" / "schema.py", (before, now))


def edit(path, *changes):
    """Replace pieces of a file at once."""
    aside = path.with_name("aside")
    aside.write_bytes(path.read_bytes())
    shop.edit(aside, *changes)
    aside.replace(path)


def told(http):
    """What /readyz says of the broken cases."""
    return http.get("/readyz").json()["broken"]


def label(http, name):
    """Send the label of the row ``one``; the status."""
    sent = {"labels": [{"prediction_id": "one", "label": name}]}
    return http.post("/v1/cases/shop/labels", json=sent).status_code


@pytest.mark.parametrize("kind", ORDERS)
def test_another_order_of_classes_is_told_and_not_followed(world, kind):
    """Classes that move, go or are renamed beside logged rows break their case alone; put back, it serves again.

    While it is served it goes on with those it had; a gateway that starts does not take it up.
    """
    root, settings = world
    now, words = ORDERS[kind]
    with client(settings, **FAST) as http:
        first = ask(http, "shop", prediction_id="one").json()["rows"]
        assert first[0]["prediction"] == "used"
        declare(root, CLASSES, now)
        until(lambda: "shop" in told(http))
        assert words in told(http)["shop"]
        assert (
            "put the order of that file back and append new classes at its end, or declare a new case"
            in (told(http)["shop"])
        )
        assert told(http).keys() == {"shop"}
        assert ask(http, "shop", prediction_id="one").json()["rows"] == first
        assert label(http, "used") == 200
    with client(settings, **FAST) as http:
        answer = ask(http, "shop", prediction_id="one")
        assert (answer.status_code, words in answer.json()["error"]) == (503, True)
        assert http.get("/readyz").json()["cases"].keys() == {"desk"}
        declare(root, now, CLASSES)
        until(lambda: not told(http))
        assert ask(http, "shop", prediction_id="one").json()["rows"] == first
    assert [line["label"] for line in lines(settings, "labels", case="shop")] == [1]


def test_a_class_at_the_end_is_followed_and_then_kept(world):
    """A class that is added behind the others is taken up, old answers stay, and it is held to from then on."""
    root, settings = world
    more = CLASSES.replace(")", ', "lost")')
    with client(settings, **FAST) as http:
        first = ask(http, "shop", prediction_id="one").json()["rows"]
        declare(root, CLASSES, more)
        until(lambda: label(http, "lost") == 200)
        assert ask(http, "shop", prediction_id="one").json()["rows"] == first
        declare(root, more, CLASSES)
        until(lambda: told(http))
        assert "3 was 'lost' (prediction_log/shop/target.json) and is no class now" in told(http)["shop"]
    assert [line["label"] for line in lines(settings, "labels", case="shop")] == [3]


def test_classes_without_rows_are_free(world):
    """As long as nothing is logged and nothing was released, classes may change as they like."""
    root, settings = world
    shop.edit(root / "desk" / "schema.py", ('label="sold",', f'label="kind", classes={CLASSES},'))
    fresh = make_home(settings.root.parent / "fresh", int(settings.triton_grpc.rpartition(":")[2]))
    with client(fresh, **FAST) as http:
        for kind in ORDERS:
            declare(root, CLASSES, ORDERS[kind][0])
            path = fresh.prediction_log / "shop" / "target.json"
            until(lambda: json.loads(path.read_text())["classes"] == list(load_fields_now(root)))  # noqa: B023
            assert told(http) == {}
            declare(root, ORDERS[kind][0], CLASSES)


def load_fields_now(root):
    """The classes that stand in shop's schema."""
    found: dict = {}
    exec((root / "shop" / "schema.py").read_text(), found)
    return found["FIELDS"].classes


def test_a_state_of_before_is_held_to_its_champion(world):
    """Where nobody has remembered the classes of logged rows, the champion's bundle says what they mean."""
    root, settings = world
    with client(settings, **FAST) as http:
        assert ask(http, "shop", prediction_id="one").status_code == 200
    (settings.prediction_log / "shop" / "target.json").unlink()
    declare(root, CLASSES, ORDERS["another order"][0])
    with client(settings, **FAST) as http:
        assert "0 was 'new' (artefacts/shop/20240101T000000Z/export/fields.json)" in told(http)["shop"]
        declare(root, ORDERS["another order"][0], CLASSES)
        until(lambda: ask(http, "shop", prediction_id="one").status_code == 200)
    assert (settings.prediction_log / "shop" / "target.json").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("Binary()", "labels of one of 3 classes (prediction_log/shop/target.json), and a binary label is declared"),
        ('Number("EUR")', "and a number (EUR) is declared now: put the target back"),
    ],
)
def test_another_kind_of_target_is_told_and_not_followed(world, target, words):
    """Logged classes are not read as 0 and 1, nor as amounts."""
    root, settings = world
    with client(settings, **FAST) as http:
        assert ask(http, "shop", prediction_id="one").status_code == 200
        edit(
            root / "shop" / "schema.py",
            ("import Categorical", "import Binary, Number, Categorical"),
            (f"classes={CLASSES}", f"target={target}"),
        )
        until(lambda: "shop" in told(http))
        assert words in told(http)["shop"]
        assert ask(http, "shop", prediction_id="one").json()["rows"][0]["prediction"] == "used"


def test_what_was_mistyped_is_mended_by_hand(world):
    """A class that was mistyped and taken up is mended in the files that say it, and the message says so.

    Without a file, in a state of before, there is nothing to mend: its champion has learned it.
    """
    root, settings = world
    more, right = CLASSES.replace(")", ', "lots")'), CLASSES.replace(")", ', "lost")')
    beside_log, in_lake = settings.prediction_log / "shop" / "target.json", settings.lake_dir / "shop" / "target.json"
    with client(settings, **FAST) as http:
        assert ask(http, "shop", prediction_id="one").status_code == 200
        declare(root, CLASSES, more)
        until(lambda: "lots" in beside_log.read_text())
        in_lake.parent.mkdir(parents=True)
        in_lake.write_bytes(beside_log.read_bytes())
        declare(root, more, right)
        for path, name in ((beside_log, "prediction_log/shop/target.json"), (in_lake, "lake/shop/target.json")):
            until(lambda: f"if {name} says that by mistake, mend it there" in told(http).get("shop", ""))  # noqa: B023
            edit(path, ("lots", "lost"))
        until(lambda: not told(http))
        until(lambda: label(http, "lost") == 200)
    beside_log.unlink()
    in_lake.unlink()
    declare(root, right, ORDERS["another order"][0])
    with shop.installed(root):
        moved = load_fields("shop")
    with pytest.raises(ConfigError, match=r"fields.json\) and is 'used' now: .* or declare a new case$"):
        kept_target.keep_beside_log(moved, settings)


@pytest.mark.parametrize("damage", ["torn", "no file"])
def test_a_damaged_record_stops_its_case_alone(world, damage):
    """A gateway starts beside a case whose record cannot be read, and serves the others; without the file it goes on.

    What is to be done stands in the message.
    """
    _, settings = world
    with client(settings, **FAST) as http:
        assert ask(http, "shop", prediction_id="one").status_code == 200
    path = settings.prediction_log / "shop" / "target.json"
    path.unlink()
    if damage == "torn":
        path.write_text('{"classes": ["ne')
    else:
        path.mkdir()
    with client(settings, **FAST) as http:
        assert http.get("/readyz").json()["cases"].keys() == {"desk"}
        assert told(http).keys() == {"shop"}
        assert "prediction_log/shop/target.json cannot be read" in told(http)["shop"]
        assert "restore it, or remove it" in told(http)["shop"]
        if damage == "torn":
            path.unlink()
        else:
            path.rmdir()
        until(lambda: ask(http, "shop", prediction_id="one").status_code == 200)
        assert told(http) == {}
    assert json.loads(path.read_text())["classes"] == ["new", "used", "broken"]


def test_a_look_does_not_list_the_log(world, monkeypatch):
    """A look at the cases, which a gateway takes every second, costs the same however many segments a log has."""
    _, settings = world
    folder = settings.prediction_log / "shop" / "predictions"
    folder.mkdir(parents=True)
    (folder.parent / "target.json").write_text('{"classes": ["other"], "unit": null, "texts": {}}')
    for number in range(1000):
        (folder / f"a-{number:06d}.jsonl").touch()
    seen = []
    scandir = os.scandir

    @contextmanager
    def counted(path):
        with scandir(path) as entries:
            yield (seen.append(entry.name) or entry for entry in entries)

    monkeypatch.setattr(os, "scandir", counted)
    assert "0 was 'other'" in kept_target.problem(load_fields("shop"), None, settings)
    assert len(seen) < 10


def test_of_many_who_remember_at_once_all_are_held_to_one(world):
    """Workers and steps that see different classes first keep one of them whole, and the others are refused."""
    root, settings = world
    settings = make_home(settings.root.parent / "fresh")
    segment = settings.prediction_log / "shop" / "labels" / "a.jsonl"
    segment.parent.mkdir(parents=True)
    segment.write_text("")
    first = load_fields("shop")
    declare(root, CLASSES, ORDERS["another order"][0])
    with shop.installed(root):
        other = load_fields("shop")
    assert first.classes != other.classes
    for keep in (
        lambda fields: kept_target.keep_beside_log(fields, settings),
        lambda fields: kept_target.keep_in_lake(fields, (), settings),
    ):
        kept, refused = _at_once(keep, [first, other] * 8)
        [one] = {fields.classes for fields in kept}
        assert (len(kept), len(refused)) == (8, 8)
        for path in settings.root.rglob("target.json"):
            assert tuple(json.loads(path.read_text())["classes"]) == one
    assert len(list(settings.root.rglob("target.json"))) == 2
    assert not list(settings.root.rglob(".target.json*"))


def _at_once(keep, every):
    kept, refused = [], []
    begin = threading.Barrier(len(every))

    def one(fields):
        begin.wait()
        try:
            keep(fields)
            kept.append(fields)
        except ConfigError:
            refused.append(fields)

    threads = [threading.Thread(target=one, args=(fields,)) for fields in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return kept, refused
