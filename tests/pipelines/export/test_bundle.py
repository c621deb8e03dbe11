"""The exported bundle and the runtime that scores it."""

import json

import numpy as np
import onnx
import pytest
import torch

from pipelines import runtime
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields
from pipelines.cases.tabular import build
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.export.bundle import check_parity, random_rows, write_bundle
from pipelines.export.onnx import of_torch, write_onnx
from pipelines.export.scoring import read_fields
from pipelines.params_file import load_params

FIELDS = load_fields("bank")
NETWORK = load_params("bank", CASES_ROOT / "bank" / "variants" / "network" / "bank.yaml").model


def raw_rows(count: int, seed: int) -> dict[str, list]:
    """Columns of raw values that :func:`random_rows` could have been encoded from."""
    tensors = random_rows(FIELDS, count, np.random.default_rng(seed))
    codes = {
        field.name: [field.values[code] for code in tensors["categorical"][:, place]]
        for place, field in enumerate(FIELDS.categorical)
    }
    return codes | {field.name: tensors["numeric"][:, place].tolist() for place, field in enumerate(FIELDS.numeric)}


def made_model(seed: int = 0) -> torch.nn.Module:
    """A bank network with random weights."""
    torch.manual_seed(seed)
    model = build(NETWORK, FIELDS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = random_rows(FIELDS, 200, np.random.default_rng(seed))
    model.adapt(torch.from_numpy(rows["numeric"]), torch.arange(200) % 2)
    return model.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A written bundle and the model it was written from."""
    folder = tmp_path_factory.mktemp("bundle")
    model = made_model()
    write_bundle(of_torch(model, FIELDS), FIELDS, folder, {"train_rows": 200, "dataset_key": "d"})
    return folder, model


def test_bundle_says_how_to_run_it(bundle):
    """bundle.json names the fields' hash, the tensors and their shapes, and they are those of the graph."""
    folder, _ = bundle
    about = json.loads((folder / "bundle.json").read_text())
    assert about["fields_hash"] == FIELDS.hash
    assert about["train_rows"] == 200
    graph = onnx.load(folder / "model.onnx").graph
    declared = {part["name"]: part["shape"] for part in [*about["inputs"], about["output"]]}
    in_graph = {
        part.name: [d.dim_value or -1 for d in part.type.tensor_type.shape.dim]
        for part in [*graph.input, *graph.output]
    }
    assert in_graph == declared == {"categorical": [-1, 10], "numeric": [-1, 9], "score": [-1, 1]}


def test_fields_come_back_from_the_bundle(bundle):
    """The bundle's fields equal the case's, and a bundle whose fields were changed is refused."""
    folder, _ = bundle
    assert read_fields(folder) == FIELDS
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(about | {"fields_hash": "0" * 64}))
    with pytest.raises(IntegrityError, match="export the model again"):
        read_fields(folder)
    (folder / "bundle.json").write_text(json.dumps(about))


def test_torch_and_onnx_runtime_agree_at_every_batch_size(bundle):
    """Scores of the graph equal torch's within 1e-5 on random rows of several batch sizes, one row included."""
    folder, model = bundle
    rows = random_rows(FIELDS, 500, np.random.default_rng(9))
    assert check_parity(of_torch(model, FIELDS), FIELDS, folder, raw_rows(300, 8), seed=1) <= 1e-5
    whole = runtime.score(folder, rows)
    assert whole.shape == (500,)
    one = runtime.score(folder, {name: tensor[:1] for name, tensor in rows.items()})
    assert one[0] == pytest.approx(whole[0], abs=1e-6)
    assert ((whole > 0) & (whole < 1)).all()


def test_parity_refuses_other_weights(bundle):
    """A graph that was not exported from these weights is an IntegrityError, never a bundle."""
    folder, _ = bundle
    with pytest.raises(IntegrityError, match="do not ship it"):
        check_parity(of_torch(made_model(seed=5), FIELDS), FIELDS, folder, raw_rows(3, 0), seed=1)


def test_equal_weights_give_equal_bytes(bundle, tmp_path):
    """The file is a function of the weights: exported again it has the same bytes; it names no path of this machine."""
    folder, model = bundle
    again = write_onnx(model, FIELDS, tmp_path).read_bytes()
    assert again == (folder / "model.onnx").read_bytes()
    assert b".py" not in again


def test_rows_are_scored_in_one_call(bundle):
    """Columns of raw values give the scores of their tensors, no rows give no scores, and a missing column is named."""
    folder, _ = bundle
    rows = raw_rows(50, 3)
    assert np.array_equal(
        runtime.score_rows(folder, FIELDS, rows),
        runtime.score(folder, random_rows(FIELDS, 50, np.random.default_rng(3))),
    )
    assert runtime.score_rows(folder, FIELDS, {name: [] for name in rows}).shape == (0,)
    with pytest.raises(DataError, match="job missing"):
        runtime.score_rows(folder, FIELDS, {name: values for name, values in rows.items() if name != "job"})


def test_runtime_names_what_is_wrong(bundle, tmp_path):
    """A missing model, bytes that are no model, and tensors of other fields are each told apart."""
    folder, _ = bundle
    rows = random_rows(FIELDS, 2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="run the step 'export' first"):
        runtime.score(tmp_path, rows)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(IntegrityError, match="export it again"):
        runtime.score(tmp_path, rows)
    with pytest.raises(IntegrityError, match="does not take these tensors"):
        runtime.score(folder, {"categorical": rows["categorical"], "numeric": rows["numeric"][:, :3]})


def test_scores_that_are_not_finite_are_refused(bundle):
    """A score that is not a number never leaves the runtime."""
    folder, _ = bundle
    rows = random_rows(FIELDS, 2, np.random.default_rng(0))
    rows["numeric"][1, 0] = np.nan
    with pytest.raises(IntegrityError, match="not finite"):
        runtime.score(folder, rows)


def test_a_replaced_model_is_loaded_anew(bundle, tmp_path):
    """The kept session belongs to the file's content: another model at the same path is not served from memory."""
    folder, _ = bundle
    rows = random_rows(FIELDS, 5, np.random.default_rng(0))
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    before = runtime.score(tmp_path, rows)
    (tmp_path / "model.onnx").unlink()
    write_onnx(made_model(seed=5), FIELDS, tmp_path)
    assert not np.allclose(runtime.score(tmp_path, rows), before)
