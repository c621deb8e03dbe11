"""Bundles of text models: dynamic shapes, classes, the tokenizer inside, and the int8 variant."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from pipelines import runtime
from pipelines.encoding import encoder
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.export import onnx as exporter
from pipelines.export import variants
from pipelines.export.bundle import check_parity, neighbours, random_texts, write_bundle
from pipelines.export.onnx import of_torch
from pipelines.export.scoring import read_fields
from pipelines.fields import Binary
from pipelines.files import file_sha256
from tests.pipelines.export.texts import CLASSES, FIELDS, MOST, made_model, reports, write_dynamic, write_tokenizer
from tests.test_dependencies import ROOT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A written bundle with its int8 variant, and the model it was written from."""
    folder, model = tmp_path_factory.mktemp("bundle"), made_model()
    write_tokenizer(folder)
    write_bundle(of_torch(model, FIELDS), FIELDS, folder, {"train_rows": 200})
    variants.write_int8(folder)
    return folder, model


def test_a_text_bundle_says_how_to_run_it(bundle):
    """bundle.json and graph have two tensors with free batch and sequence, a score per class, classes and tokenizer."""
    folder, _ = bundle
    about = json.loads((folder / "bundle.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert about["tokenizer_sha256"] == file_sha256(folder / "tokenizer.json")
    assert read_fields(folder) == FIELDS
    for name in ("model.onnx", "model.int8.onnx"):
        proto = onnx.load(folder / name)
        shapes = {
            part.name: [d.dim_value or -1 for d in part.type.tensor_type.shape.dim]
            for part in [*proto.graph.input, *proto.graph.output]
        }
        assert shapes == {"input_ids": [-1, -1], "attention_mask": [-1, -1], "score": [-1, 4]}
        assert next(opset.version for opset in proto.opset_import if not opset.domain) == 20


def test_torch_and_onnx_runtime_agree_at_every_shape(bundle):
    """Probabilities equal torch's within 1e-5 for random batches and lengths and for real texts, and sum to one."""
    folder, model = bundle
    assert check_parity(of_torch(model, FIELDS), FIELDS, folder, {"report": reports(70)}, seed=1) <= 1e-5
    with torch.no_grad():
        for rows, tokens in ((1, 2), (1, MOST), (9, 2), (3, 31)):
            tensors = random_texts(rows, tokens, 100, np.random.default_rng(tokens))
            expected = torch.softmax(
                model(**{name: torch.from_numpy(tensor) for name, tensor in tensors.items()}), 1
            ).numpy()
            answer = runtime.score(folder, tensors)
            assert answer.shape == (rows, 4)
            assert np.abs(answer - expected).max() < 1e-5
            assert answer.sum(1) == pytest.approx(1, abs=1e-5)


def test_parity_refuses_other_weights(bundle):
    """A graph of other weights is refused, also when it differs on random texts only."""
    folder, _ = bundle
    with pytest.raises(IntegrityError, match="do not ship it"):
        check_parity(of_torch(made_model(seed=5), FIELDS), FIELDS, folder, {"report": []}, seed=1)


def test_texts_are_answered_in_row_order_whatever_the_batches(bundle, monkeypatch):
    """Rows sorted by length, in batches and pools, get the scores that each of them gets alone."""
    folder, _ = bundle
    texts = reports(23, seed=4)
    encode = encoder(FIELDS, folder)
    alone = np.concatenate([runtime.score(folder, encode({"report": [text]})) for text in texts])
    monkeypatch.setattr(runtime, "BATCH", 4)
    monkeypatch.setattr(runtime, "POOL", 10)
    together = runtime.score_rows(folder, FIELDS, {"report": texts}, threads=2)
    assert together.shape == (23, 4)
    assert np.abs(together - alone).max() < 1e-6
    assert runtime.score_rows(folder, FIELDS, {"report": []}).shape == (0, 4)
    with pytest.raises(DataError, match="report is missing"):
        runtime.score_rows(folder, FIELDS, {"text": texts})


def test_batches_are_cut_to_their_longest_text():
    """A batch of short texts is not padded to the longest text of all, and no row is lost."""
    tensors = random_texts(50, 30, 9, np.random.default_rng(0))
    seen, widths = [], []
    for places, batch in runtime.by_length(tensors, batch=8):
        assert np.array_equal(batch["attention_mask"].sum(1), tensors["attention_mask"][places].sum(1))
        assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max()
        seen += places.tolist()
        widths.append(batch["input_ids"].shape[1])
    assert sorted(seen) == list(range(50))
    assert widths == sorted(widths)
    assert widths[0] < 10


def test_a_binary_text_model_answers_one_probability(tmp_path):
    """Without classes the score is the sigmoid of one logit, and equal weights give equal bytes."""
    fields = replace(FIELDS, target=Binary())
    write_tokenizer(tmp_path)
    model = made_model(outputs=1)
    write_bundle(of_torch(model, fields), fields, tmp_path, {})
    assert check_parity(of_torch(model, fields), fields, tmp_path, {"report": reports(5)}, seed=2) <= 1e-5
    assert runtime.score_rows(tmp_path, fields, {"report": reports(5)}).shape == (5,)
    first = (tmp_path / "model.onnx").read_bytes()
    assert exporter.write_onnx(model, fields, tmp_path).read_bytes() == first
    assert b".py" not in first


def test_int8_is_smaller_and_the_same_bytes_again(bundle):
    """The quantised file is a function of the model, takes the same tensors and answers nearly the same."""
    folder, _ = bundle
    first = (folder / "model.int8.onnx").read_bytes()
    assert len(first) < (folder / "model.onnx").stat().st_size
    assert variants.write_int8(folder).read_bytes() == first
    texts = {"report": reports(40)}
    fp32, int8 = (runtime.score_rows(folder, FIELDS, texts, model=name) for name in ("model.onnx", "model.int8.onnx"))
    assert 0 < np.abs(fp32 - int8).max() < 0.03


def test_an_answer_does_not_hang_on_its_neighbours(bundle):
    """In fp32 and in int8 a text has the same score alone, in batches of 2 to 32, and with more padding behind it."""
    folder, _ = bundle
    encode, texts = encoder(FIELDS, folder), reports(32, seed=6)
    for name in ("model.onnx", "model.int8.onnx"):
        alone = np.concatenate([runtime.score(folder, encode({"report": [text]}), model=name) for text in texts])
        for size in (2, 3, 8, 17, 32):
            for start in range(0, len(texts), size):
                answered = runtime.score(folder, encode({"report": texts[start : start + size]}), model=name)
                assert np.abs(answered - alone[start : start + size]).max() < 1e-6
        for padding in (1, 7, 24):
            padded = [
                {part: np.pad(tensor, ((0, 0), (0, padding))) for part, tensor in encode({"report": [text]}).items()}
                for text in texts[:8]
            ]
            assert (
                max(
                    np.abs(runtime.score(folder, one, model=name) - own).max()
                    for one, own in zip(padded, alone, strict=False)
                )
                < 1e-6
            )
        assert neighbours(FIELDS, folder, {"report": texts}, 0, name) < 1e-6


def test_quantised_activations_are_seen(bundle, tmp_path):
    """A graph with one activation scale for the whole tensor, whose answers hang on their neighbours, is told."""
    folder, _ = bundle
    write_dynamic(folder, tmp_path / "model.onnx")
    write_tokenizer(tmp_path)
    assert neighbours(FIELDS, tmp_path, {"report": reports(16)}, 0) > 1e-4


@pytest.mark.slow
def test_tritons_onnx_runtime_loads_the_int8_variant(bundle):
    """The ONNX Runtime of Triton's environment gives the scores of ours for the int8 file."""
    folder, _ = bundle
    tensors = encoder(FIELDS, folder)({"report": reports(5)})
    code = "import sys, json, numpy as np, onnxruntime as ort\n"
    code += "given = {name: np.array(value, np.int64) for name, value in json.load(sys.stdin).items()}\n"
    code += "session = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    code += "print(json.dumps(session.run(['score'], given)[0].tolist()))"
    command = [ROOT / ".venv-triton" / "bin" / "python", "-c", code, folder / "model.int8.onnx"]
    given = json.dumps({name: tensor.tolist() for name, tensor in tensors.items()})
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=60)
    assert np.allclose(
        json.loads(done.stdout), runtime.score(folder, tensors, model="model.int8.onnx"), rtol=0, atol=1e-6
    )


def test_what_ships_can_be_the_int8_variant(bundle, tmp_path):
    """After shipping int8, model.onnx is the quantised graph, and the other one keeps its own name and bytes."""
    folder, _ = bundle
    for name in ("model.onnx", "model.int8.onnx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    variants.ship_int8(tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == (folder / "model.int8.onnx").read_bytes()
    assert (tmp_path / variants.FP32).read_bytes() == (folder / "model.onnx").read_bytes()
    assert not (tmp_path / "model.int8.onnx").exists()


def test_each_variant_is_measured(bundle):
    """Bytes and milliseconds of one row and of 32 are those of the file asked for; without rows there are no times."""
    folder, _ = bundle
    found = variants.cost(folder, "model.int8.onnx", FIELDS, {"report": reports(6)})
    assert found["bytes"] == (folder / "model.int8.onnx").stat().st_size
    assert set(found["latency_ms"]) == {"1", "32"}
    assert all(value > 0 for value in found["latency_ms"].values())
    assert variants.cost(folder, "model.onnx", FIELDS, {"report": []}) == {
        "file": "model.onnx",
        "bytes": (folder / "model.onnx").stat().st_size,
    }


def test_what_quantisation_changes_is_counted():
    """Agreement is the share of rows with the same predicted label, and a metric's change is int8 minus fp32."""
    label = np.array([0, 1, 2, 1])
    fp32 = np.eye(3)[label] * 0.7 + 0.1
    int8 = fp32.copy()
    int8[3] = [0.6, 0.3, 0.1]
    found = variants.difference(
        label,
        fp32,
        int8,
        lambda truth, scores: {"accuracy": float(np.mean(scores.argmax(1) == truth)), "roc_auc": None},
    )
    assert found == {
        "rows": 4,
        "label_agreement": 0.75,
        "score_change": pytest.approx(0.5),
        "metrics": {"accuracy": -0.25},
    }
    binary = variants.difference(label[:2], np.array([0.2, 0.6]), np.array([0.5, 0.4]), lambda *_: {})
    assert binary["label_agreement"] == 0.0
    assert variants.difference(label[:0], fp32[:0], int8[:0], lambda *_: {})["label_agreement"] is None


def test_a_model_too_large_for_a_file_is_refused(tmp_path, monkeypatch):
    """What one ONNX file cannot hold is said before the export, with its size."""
    monkeypatch.setattr(exporter, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="choose a smaller encoder"):
        exporter.write_onnx(made_model(), FIELDS, tmp_path)


def test_a_bundle_of_texts_needs_its_tokenizer(tmp_path):
    """Without tokenizer.json the export stops and says where it comes from."""
    with pytest.raises(ConfigError, match="tokenizer"):
        write_bundle(of_torch(made_model(), FIELDS), FIELDS, tmp_path, {})
