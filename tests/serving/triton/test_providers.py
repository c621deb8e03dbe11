"""Where the Python-based backend computes, by the kind of the instance that Triton made.

Without Triton and without a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import onnxruntime
import pytest

from embedded.triton import BACKENDS
from tests.models import write_onnx

CONFIG = {
    "max_batch_size": 8,
    "input": [
        {"name": "categorical", "data_type": "TYPE_INT64", "dims": [2]},
        {"name": "numeric", "data_type": "TYPE_FP32", "dims": [3]},
    ],
    "output": [{"name": "score", "data_type": "TYPE_FP32", "dims": [1]}],
}


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """``(opened, warned)``: opens a model as an instance of a kind and gives the session's providers.

    And the warnings so far.
    """
    write_onnx(tmp_path / "model.onnx")
    warned: list[str] = []
    utils = ModuleType("triton_python_backend_utils")
    utils.get_model_dir = lambda: str(tmp_path)
    utils.Logger = SimpleNamespace(log_warn=warned.append)
    utils.TritonModelException = RuntimeError
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    spec = importlib.util.spec_from_file_location("backend_of_triton", BACKENDS / "onnxruntime" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.np, "__version__", "1.26.0")  # the stub's numpy
    asked: list[list] = []

    def opened(kind: str, available: tuple[str, ...]) -> list:
        monkeypatch.setattr(module.ort, "get_available_providers", lambda: list(available))
        real = onnxruntime.InferenceSession

        def session(path, options, providers):
            asked.append(providers)
            return real(path, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(module.ort, "InferenceSession", session)
        instance = module.TritonPythonModel()
        instance.initialize(
            {
                "model_config": json.dumps(CONFIG),
                "model_name": "tiny",
                "model_instance_kind": kind,
                "model_instance_device_id": "1",
            }
        )
        monkeypatch.setattr(module.ort, "InferenceSession", real)
        return asked[-1]

    return opened, warned


def test_an_instance_of_a_gpu_asks_for_its_own_gpu(backend):
    """With CUDA in its ONNX Runtime a GPU's instance asks for that GPU in full float32, and the CPU behind it."""
    opened, _ = backend
    found = opened("GPU", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert found == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}), "CPUExecutionProvider"]


def test_an_instance_of_a_gpu_without_cuda_says_so_and_serves(backend):
    """Without CUDA a GPU's instance is opened on the CPU, with a warning that names the model."""
    opened, warned = backend
    assert opened("GPU", ("CPUExecutionProvider",)) == ["CPUExecutionProvider"]
    assert len(warned) == 1
    assert "tiny asks for a GPU" in warned[0]


def test_an_instance_of_the_cpu_stays_there(backend):
    """A CPU's instance does not touch CUDA, and warns of nothing."""
    opened, warned = backend
    assert opened("CPU", ("CUDAExecutionProvider", "CPUExecutionProvider")) == ["CPUExecutionProvider"]
    assert warned == []
