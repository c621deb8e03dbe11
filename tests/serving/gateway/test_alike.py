"""A row is answered alike alone, in any batch and beside any neighbours: the gateway in front of the real tritonserver.

The gateway's application runs in this process, so that requests of one moment do share calls. More examples by hand:
``pytest tests/serving/gateway/test_alike.py --hypothesis-profile=many``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.loops.uvloop import uvloop_loop_factory

from embedded import triton as embedded
from pipelines import runtime
from pipelines.cases import load_fields
from pipelines.deploy import repository, triton
from pipelines.text import TOKENIZER, TOKENS
from serving.gateway.app import create_app
from serving.gateway.joining import Refusal
from serving.gateway.settings import Bounds
from tests.serving.gateway.world import KEY, make_home, release, some_rows
from tests.texts import some_texts, write_text_bundle

pytestmark = pytest.mark.slow
EXACT = 1e-6
"""How far float32 answers of one row may lie apart."""
LOANS, TRIAGE = load_fields("loans"), load_fields("triage")
FIELDS = {"loans": LOANS, "triage": TRIAGE}
KINDS = 12
"""Rows of a case that a request chooses from; beyond are two that Triton has no answer for."""
REFUSED, NAN = KINDS, KINDS + 1
LATE = "the rows that wait already take as long as is promised"
"""What admission says."""
SECONDS: ContextVar[float] = ContextVar("seconds", default=20.0)
"""How long the request of this task may take."""


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: int, constants: dict[str, Any]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", outputs])
    own = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "alike", inputs, [output], own)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def write_table(folder: Path) -> None:
    """A network of two hidden layers for the rows of loans.

    It has no embedding for the 20th make, of which ONNX Runtime fails, and of an amount above 4,999,000 it makes NaN.
    """
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    sizes = (3 * 8 + 6, 96, 64, 1)
    constants: dict[str, Any] = {
        "table": rng.normal(size=(19, 8)).astype(np.float32),
        "flat": np.array([-1, 24], np.int64),
        "means": np.array([7e4, 2e4, 45, 5e5, 15, 5e5], np.float32),
        "widths": np.array([4e4, 3e4, 20, 5e5, 10, 4e5], np.float32),
        "amount": np.array([5], np.int64),
        "most": np.array([4_999_000.5], np.float32),
        "nothing": np.array([0.0], np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "categorical"], ["looked"]),
        helper.make_node("Reshape", ["looked", "flat"], ["embedded"]),
        helper.make_node("Sub", ["numeric", "means"], ["centred"]),
        helper.make_node("Div", ["centred", "widths"], ["scaled"]),
        helper.make_node("Concat", ["embedded", "scaled"], ["layer0"], axis=1),
    ]
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        constants[f"w{number}"] = (rng.normal(size=(wide, narrow)) / np.sqrt(wide)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [f"layer{number}", f"w{number}"], [f"product{number}"]))
        nodes.append(helper.make_node("Tanh", [f"product{number}"], [f"layer{number + 1}"]))
    nodes += [
        helper.make_node("Gather", ["numeric", "amount"], ["asked"], axis=1),
        helper.make_node("Sub", ["most", "asked"], ["left"]),
        helper.make_node("Log", ["left"], ["log"]),
        helper.make_node("Mul", ["log", "nothing"], ["zero"]),
        helper.make_node("Add", ["layer3", "zero"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    inputs = [
        helper.make_tensor_value_info("categorical", TensorProto.INT64, ["batch", 3]),
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["batch", 6]),
    ]
    _save(folder / "model.onnx", nodes, inputs, 1, constants)


def write_attention(folder: Path) -> None:
    """A layer of attention over the tokens of a text, padding masked, and the mean of what it gives.

    It has no embedding for the last word of its tokenizer, of which ONNX Runtime fails, and the word before makes NaN.
    """
    from onnx import TensorProto, helper

    outputs = len(TRIAGE.classes)
    write_text_bundle(folder, outputs=outputs, seed=1)  # its tokenizer
    rng = np.random.default_rng(1)
    words = len(_words(folder))
    table = rng.normal(size=(words + 2, 16)).astype(np.float32)
    table[words + 1] = np.nan
    constants: dict[str, Any] = {
        "table": table,
        **{name: (rng.normal(size=(16, 16)) / 4).astype(np.float32) for name in ("wq", "wk", "wv")},
        "w": rng.normal(size=(16, outputs)).astype(np.float32),
        "one": np.array([1.0], np.float32),
        "far": np.array([1e4], np.float32),
        "second": np.array([1], np.int64),
        "third": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Cast", ["attention_mask"], ["own"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["own", "one"], ["short"]),
        helper.make_node("Mul", ["short", "far"], ["closed"]),
        helper.make_node("Unsqueeze", ["closed", "second"], ["bias"]),
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "turned"], ["raw"]),
        helper.make_node("Add", ["raw", "bias"], ["open"]),
        helper.make_node("Softmax", ["open"], ["weights"], axis=2),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"]),
        helper.make_node("Unsqueeze", ["own", "third"], ["mask"]),
        helper.make_node("Mul", ["mixed", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second"], ["summed"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "second"], ["count"], keepdims=0),
        helper.make_node("Div", ["summed", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["score"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in TOKENS]
    _save(folder / "model.onnx", nodes, inputs, outputs, constants)


def _words(folder: Path) -> list[str]:
    """The tokenizer's words in the order of their ids, which begin at 3."""
    known = json.loads((folder / TOKENIZER).read_text())["model"]["vocab"]
    return [word for word, _ in sorted(known.items(), key=lambda one: one[1])][3:]


class World:
    """The gateway's application with both cases, in an event loop that goes on only while something is asked."""

    def __init__(self, home: Path, ports: Any) -> None:
        client = embedded.settings(home, ports).triton_client
        self.settings = make_home(home, ports.triton_grpc, triton_client=client, log_segment_seconds=3600.0)
        bundles = {}
        for case, fill in (("loans", write_table), ("triage", write_attention)):
            bundles[case] = release(self.settings, 1, case=case, fill=fill)
            repository.stage(self.settings.model_repository, case, 1, bundles[case])
            repository.configure(self.settings.model_repository, FIELDS[case], [1])
            triton.load(self.settings, case)
        dense = [row | {"car": "make_7"} for row in some_rows(KINDS)]
        self.rows = {
            "loans": [*dense, dense[0] | {"car": "make_20"}, dense[1] | {"amount": 4_999_500.0}],
            "triage": [{"text": text} for text in _texts(_words(bundles["triage"]))],
        }
        self.alone = {case: self._alone(case, bundles[case]) for case in FIELDS}
        self.loop = uvloop_loop_factory()()
        self.app = create_app(self.settings, Bounds(poll_seconds=0.05, sync_seconds=0.05))
        self.lifespan = self.app.router.lifespan_context(self.app)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1", headers={"X-API-Key": KEY}
        )
        self.seen: Counter[str] = Counter()
        self.logged: dict[str, dict[str, Any]] = {}
        self.read: Counter[str] = Counter()
        self.turn = 0

    def _alone(self, case: str, bundle: Path) -> list[list[float]]:
        """What ONNX Runtime gives for each good row by itself [K]."""
        return [
            np.ravel(runtime.score_rows(bundle, FIELDS[case], {name: [value] for name, value in row.items()})).tolist()
            for row in self.rows[case][:KINDS]
        ]

    async def start(self) -> None:
        """Serve, and look into the calls that go to Triton."""
        await self.lifespan.__aenter__()
        client = self.app.state.gateway.triton
        sent = client._score

        async def score(name: str, fields: Any, version: int, call: Any) -> list[float]:
            joined = len(call.turns) > 1
            mask = call.inputs.get("attention_mask")
            self.seen["joined"] += joined
            self.seen["mixed lengths"] += joined and mask is not None and len(set(mask.sum(1).tolist())) > 1
            try:
                return await sent(name, fields, version, call)
            except Refusal:
                self.seen["joined and refused"] += joined
                raise

        client._score = score
        client.deadline = lambda *_about, **_named: time.monotonic() + SECONDS.get()

    async def stop(self) -> None:
        """End the application and its client."""
        await self.http.aclose()
        await self.lifespan.__aexit__(None, None, None)

    def fresh(self) -> list[tuple[str, dict[str, Any]]]:
        """The lines that both logs have got since the last call, each with its case."""
        found = []
        for case in FIELDS:
            for path in sorted((self.settings.prediction_log / case / "predictions").glob("*.jsonl*")):
                new = path.read_bytes()[self.read[case] :]
                self.read[case] += len(new)
                found += [(case, json.loads(line)) for line in new.splitlines()]
        ids = {line["prediction_id"]: line for _, line in found}
        assert len(ids) == len(found), "an id is logged twice"
        assert not ids.keys() & self.logged.keys(), "an id is logged twice"
        self.logged |= ids
        return found


def _texts(words: list[str]) -> list[str]:
    """Texts for every kind, the short ones of lengths that share a padded one."""
    *good, nan, refused = words
    texts = [[word for word in text.split() if word in good] for text in some_texts(60, 5)]
    chosen = [text[: 1 + number // 2] for number, text in enumerate(text for text in texts if len(text) > 3)]
    chosen = chosen[: KINDS // 2] + texts[: KINDS // 2]
    return [" ".join(text) for text in (*chosen, [*chosen[0], refused], [*chosen[1], nan])]


@pytest.fixture(scope="module")
def world(triton_server):
    """The gateway in front of the real Triton."""
    found = World(*triton_server)
    found.loop.run_until_complete(found.start())
    yield found
    found.loop.run_until_complete(found.stop())
    found.loop.close()


class Asked(NamedTuple):
    """A request: the kinds of its rows, each with the number of an id that others may have too, or none.

    It comes after ``moment`` milliseconds. ``fate``: its client waits for the answer (stays), goes away after a
    millisecond (leaves), or has given it no more time than that (hurries).
    """

    case: str
    rows: tuple[tuple[int, int | None], ...]
    moment: int = 0
    fate: str = "stays"
    partial: bool = False

    def ids(self) -> dict[int, set[int]]:
        """The kinds of its rows by their ids' numbers."""
        found: dict[int, set[int]] = {}
        for kind, key in self.rows:
            if key is not None:
                found.setdefault(key, set()).add(kind)
        return found

    @property
    def impossible(self) -> bool:
        """Whether Triton has no answer for one of its rows."""
        return any(kind >= KINDS for kind, _ in self.rows)


async def _ask(world: World, asked: Asked) -> httpx.Response:
    await asyncio.sleep(asked.moment / 1000)
    rows = [
        world.rows[asked.case][kind] | ({} if key is None else {"prediction_id": f"{world.turn}-{asked.case}-{key}"})
        for kind, key in asked.rows
    ]
    if asked.fate == "hurries":
        SECONDS.set(0.001)
    address = f"/v1/cases/{asked.case}/predict" + ("?partial=true" if asked.partial else "")
    return await world.http.post(address, json={"rows": rows})


async def _all(world: World, requests: list[Asked]) -> list[httpx.Response | BaseException]:
    tasks = [asyncio.create_task(_ask(world, asked)) for asked in requests]
    for task, asked in zip(tasks, requests, strict=True):
        if asked.fate == "leaves":
            asyncio.get_running_loop().call_later((asked.moment + 1) / 1000, task.cancel)
    return await asyncio.gather(*tasks, return_exceptions=True)


def check(world: World, requests: list[Asked]) -> None:
    """Ask all of it, and hold every answer and every line of the log against what each row is answered alone."""
    world.turn += 1
    answers = world.loop.run_until_complete(_all(world, requests))
    fresh = world.fresh()
    kinds: dict[tuple[str, int], set[int]] = {}
    for asked in requests:
        for key, own in asked.ids().items():
            kinds.setdefault((asked.case, key), set()).update(own)
    said: dict[str, dict[str, Any]] = {}
    for asked, answer in zip(requests, answers, strict=True):
        shared = {key for key in asked.ids() if len(kinds[asked.case, key]) > 1}
        if _stands_back(requests, asked, answer):
            continue
        for row in _answered(world, asked, answer, shared):
            world.seen["repeated"] += row["prediction_id"] in said
            assert said.setdefault(row["prediction_id"], row) == row
    left = {(asked.case, kind) for asked in requests if asked.fate == "leaves" for kind, _ in asked.rows}
    for case, line in fresh:
        kind = world.rows[case].index(line["row"])
        prediction = line["prediction"] if case == "loans" else TRIAGE.classes[line["prediction"]]
        _hold(world, case, kind, line["score"], prediction)
        if case == "triage":
            np.testing.assert_allclose(line["scores"], world.alone[case][kind], rtol=0, atol=EXACT)
        answered = said.get(line["prediction_id"])
        if answered is None:
            assert (case, kind) in left, "a row is logged whose request was refused"
        else:
            assert (line["score"], prediction) == (answered["score"], answered["prediction"])
    assert said.keys() <= world.logged.keys(), "an answer is not in the log"


def _stands_back(requests: list[Asked], asked: Asked, answer: httpx.Response | BaseException) -> bool:
    """Whether a request was refused at once because it would have made one late that has less time."""
    hurried = any(other.fate == "hurries" and other.case == asked.case for other in requests)
    return hurried and isinstance(answer, httpx.Response) and LATE in answer.text


def _answered(
    world: World, asked: Asked, answer: httpx.Response | BaseException, shared: set[int]
) -> list[dict[str, Any]]:
    """The rows that a request is answered, held against what they are answered alone, or why it rightly has none.

    Its ids of these numbers, ``shared``, are given to other rows too.
    """
    if isinstance(answer, asyncio.CancelledError):
        assert asked.fate == "leaves"
        world.seen["left"] += 1
        return []
    assert isinstance(answer, httpx.Response), answer
    if answer.status_code == 503:
        assert asked.impossible or asked.fate == "hurries", (asked, answer.text)
        world.seen["impossible" if asked.impossible else "too late"] += 1
        return []
    if answer.status_code == 409:
        assert shared, (asked, answer.text)
        assert not asked.partial, (asked, answer.text)
        world.seen["conflicts"] += 1
        return []
    assert answer.status_code == 200, (asked, answer.text)
    found = []
    for (kind, key), row in zip(asked.rows, answer.json()["rows"], strict=True):
        if "status" in row:
            assert (row["status"], asked.partial) == (409, True), (asked, row)
            assert key in shared, (asked, row)
        else:
            _hold(world, asked.case, kind, row["score"], row["prediction"])
            found.append(row)
    return found


def _hold(world: World, case: str, kind: int, score: float, prediction: int | str) -> None:
    """A row's answer is the one that it gets alone."""
    alone = world.alone[case][kind]
    assert score == pytest.approx(max(alone), rel=0, abs=EXACT)
    expected: int | str = int(alone[0] >= 0.5) if case == "loans" else TRIAGE.classes[int(np.argmax(alone))]
    assert prediction == expected


ROWS = st.tuples(
    st.sampled_from([*range(KINDS)] * 4 + [REFUSED, NAN]), st.one_of(st.none(), st.none(), st.integers(0, 2))
)
REQUESTS = st.lists(
    st.builds(
        Asked,
        st.sampled_from(["loans", "triage"]),
        st.lists(ROWS, min_size=1, max_size=5).map(tuple),
        st.integers(0, 4),
        st.sampled_from(["stays"] * 5 + ["leaves", "hurries"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=24,
)
CROWD = [
    *(Asked("triage", ((number % 6, None),)) for number in range(12)),
    *(Asked("triage", ((number, None),), fate="leaves") for number in range(3)),
    *(Asked("triage", ((number, None),), fate="hurries") for number in range(3)),
    *(Asked("triage", ((number, 1),)) for number in (0, 0, 0, 1, 1)),
    Asked("triage", ((REFUSED, None),)),
    *(Asked("triage", ((number % 6, None),)) for number in range(6)),
]
"""Requests of one moment, among which everything happens."""
EVERYTHING = {
    "joined",
    "mixed lengths",
    "joined and refused",
    "left",
    "too late",
    "impossible",
    "conflicts",
    "repeated",
}
"""What must have happened among all examples, so that they hold anything."""


def test_a_row_alone_is_answered_as_onnx_runtime_answers_it(world):
    """One request at a time, of one row: the gateway gives what the bundle's model gives, and says where it cannot."""
    for case in FIELDS:
        for kind in range(KINDS + 2):
            check(world, [Asked(case, ((kind, None),))])


@pytest.mark.parametrize("case", list(FIELDS))
def test_rows_that_triton_refuses_cost_no_neighbour_its_answer(world, case):
    """However many requests of a moment hold such rows, the others have the answers that they have alone."""
    for bad in (REFUSED, NAN):
        for wrong in (lambda number: number % 3, lambda number: number < 12):
            check(world, [Asked(case, ((bad if wrong(number) else number % 6, None),)) for number in range(24)])
            check(world, [Asked(case, ((0, None),))])


def test_requests_without_time_cost_no_neighbour_its_answer(world):
    """However many requests of a moment are too late for any answer, the others have theirs, and so have later ones."""
    for _ in range(3):
        check(world, [Asked("loans", ((number % 6, None),), fate="hurries") for number in range(24)])
        check(world, [Asked("loans", ((0, None),))])


def test_a_row_is_answered_alike_beside_any_neighbours(world):
    """Rows of any requests, at any moment: with wrong rows, late joiners, clients that leave, ids that are repeated.

    Every answer and every line of the log is what the row is answered alone, what is logged is what was answered, and
    nothing of a refused request is logged.
    """
    world.seen.clear()

    @settings(deadline=None)
    @example(CROWD)
    @given(REQUESTS)
    def holds(requests: list[Asked]) -> None:
        check(world, requests)

    holds()
    assert {what for what, count in world.seen.items() if count} == EVERYTHING, world.seen
