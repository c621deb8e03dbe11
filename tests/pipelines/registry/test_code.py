"""pipelines/registry/code.py: the project's own code as a package of its own."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from pipelines import answering, imports
from pipelines.cases import load_fields
from pipelines.errors import IntegrityError
from pipelines.fields import to_json
from pipelines.problems import allowed
from pipelines.registry import code
from tests.pipelines.candidates import CASE, rows, write_onnx
from tests.pipelines.registry.packed import packed

FIELDS = load_fields(CASE)
ELSEWHERE = """
import sys

OWN = {"numpy", "pandas", "onnxruntime", "pydantic", sys.argv[2].partition(".")[0]}
THEIRS = {"annotated_types", "dateutil", "flatbuffers", "google", "packaging", "pydantic_core", "six"}
THEIRS |= {"typing_extensions", "typing_inspection"}

class Requirements:
    def find_spec(self, name, path=None, target=None):
        if name[0] != "_" and name.partition(".")[0] not in OWN | THEIRS | sys.stdlib_module_names:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Requirements())
sys.path.insert(0, sys.argv[1])
import importlib, json
import pandas

model = importlib.import_module(sys.argv[2])._load_pyfunc(sys.argv[3])
print(json.dumps(model.predict(pandas.read_json(sys.argv[4], orient="split")).to_dict("records")))
"""


def _bundle(folder, bias=0.1):
    folder.mkdir()
    write_onnx(folder / "model.onnx", FIELDS, bias)
    (folder / answering.FIELDS).write_text(json.dumps(to_json(FIELDS)))
    (folder / "bundle.json").write_text(json.dumps({"fields_hash": FIELDS.hash}))
    return folder


def _frame(count=20):
    """Rows of which some are beyond their bounds, the first one not."""
    good = pd.DataFrame([{field.name: allowed(field) for field in FIELDS.fields}])
    return pd.concat([good, rows(FIELDS, count).select(FIELDS.names).to_pandas()], ignore_index=True)


def test_it_answers_where_nothing_of_the_project_is(tmp_path):
    """A process that can import the requirements and nothing else, the project least of all, gives our answers."""
    bundle, frame = _bundle(tmp_path / "bundle"), _frame()
    name = code.write(answering.__name__, tmp_path / "code")
    frame.to_json(tmp_path / "rows.json", orient="split")
    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "code", name, bundle, tmp_path / "rows.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == answering.load(bundle).predict(frame).to_dict("records")


def test_versions_of_other_code_stand_side_by_side(tmp_path, monkeypatch):
    """A change of any module gives the package another name, and of two in one process each answers by its own code."""
    bundle, frame = _bundle(tmp_path / "bundle"), _frame(0)
    ours = imports.reachable(answering.__name__)
    with packed(tmp_path / "one", bundle) as one:
        before = code.package(answering.__name__)
        assert code.package(answering.__name__) == before
        changed = tmp_path / "measures.py"
        changed.write_text(ours["pipelines.measures"].read_text().replace("score >= 0.5", "score < 0.5"))
        monkeypatch.setattr(imports, "reachable", lambda _: ours | {"pipelines.measures": changed})
        assert code.package(answering.__name__) != before
        with packed(tmp_path / "two", bundle) as other:
            answers = [model.predict(frame) for model in (one, other)]
    assert (answers[0]["score"] == answers[1]["score"]).all()
    assert (answers[0]["prediction"] != answers[1]["prediction"]).all()


def test_an_import_that_is_not_rewritten_is_refused(tmp_path, monkeypatch):
    """A module that would look for the project where there is none is an error here, before it is uploaded."""
    module = tmp_path / "module.py"
    module.write_text("import pipelines.fields\n")
    monkeypatch.setattr(imports, "reachable", lambda _: {"pipelines.module": module})
    with pytest.raises(IntegrityError, match=r"module\.py has 'import pipelines\.\.\.': write 'from pipelines import"):
        code.write("pipelines.module", tmp_path / "code")
