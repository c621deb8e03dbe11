"""A Python-based Triton backend named ``onnxruntime``: one model repository for two servers.

Triton looks for ``libtriton_onnxruntime.so`` first (the official container has it) and falls back to this
file, so the same ``config.pbtxt`` with ``backend: "onnxruntime"`` serves in both. It runs inside Triton's
Python stub, from the virtual environment ``.venv-triton`` with numpy 1: the stub reads numpy's internal
structures, and under numpy 2 it hands out wrong bytes without any error.

Understood in config.pbtxt: ``max_batch_size``, ``input``, ``output``, ``default_model_filename``, the kind of the
instance that Triton made of ``instance_group``, and the parameters of :data:`PARAMETERS`, which the C++ backend knows
under the same names.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

DATA_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int8)": "TYPE_INT8",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
}
"""ONNX Runtime's type of a tensor -> Triton's."""

PARAMETERS = ("intra_op_thread_count", "inter_op_thread_count", "session.intra_op.allow_spinning")
"""Set 1, 1 and "0" on few cores: spinning threads cost a small model a third of its throughput."""

SLOW_SECONDS = 0.02
"""Where a run takes as long, requests are asked whether somebody still waits for them: that takes up to 0.2 ms each."""


class TritonPythonModel:
    """One instance of one model version; Triton calls the methods, their names are Triton's."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fill the inputs and outputs that config.pbtxt leaves out from the ONNX graph."""
        declared = auto_complete_model_config.as_dict()
        session = _session(declared)
        batched = declared["max_batch_size"] > 0
        for tensor in session.get_inputs():
            auto_complete_model_config.add_input(_declaration(tensor, batched=batched))
        for tensor in session.get_outputs():
            auto_complete_model_config.add_output(_declaration(tensor, batched=batched))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session.

        A graph that is not what config.pbtxt declares raises TritonModelException, which keeps the old version serving.
        """
        config = json.loads(args["model_config"])
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} corrupts tensors in this stub: run `make setup`, which builds .venv-triton "
                "with numpy 1"
            )
        self.session = _session(config, _providers(args["model_instance_kind"], args["model_instance_device_id"]))
        if args["model_instance_kind"] == "GPU" and "CUDAExecutionProvider" not in self.session.get_providers():
            pb_utils.Logger.log_warn(
                f"{args['model_name']} asks for a GPU, and this ONNX Runtime has none to offer: it is served on the CPU"
            )
        self.batched = config["max_batch_size"] > 0
        _check(args["model_name"], config, self.session, batched=self.batched)
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.seconds = 0.0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton put into one batch, in their order.

        Those whose rows have one shape are one run on the concatenated rows; texts of other lengths (which Triton
        batches only where ``allow_ragged_batch`` says so) are another. If a run fails, every request of it runs
        alone, so that a bad one fails by itself and not its neighbours. What nobody waits for any more (its client has
        gone, its deadline has passed) is not run by a slow model; Triton's dynamic batcher, where there is one, keeps
        it from coming here at all.
        """
        begun = time.monotonic()
        gone = set[int]()
        if self.seconds >= SLOW_SECONDS:
            gone = {place for place, request in enumerate(requests) if request.is_cancelled()}
        answers = iter(self._answers([request for place, request in enumerate(requests) if place not in gone]))
        responses = [_cancelled() if place in gone else next(answers) for place in range(len(requests))]
        if len(gone) < len(requests):
            self.seconds = time.monotonic() - begun
        return responses

    def finalize(self) -> None:
        """Give the session's memory back."""
        del self.session

    def _answers(self, requests: list[Any]) -> list[Any]:
        """The responses to requests that are waited for."""
        feeds = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if not self.batched or len(requests) == 1:
            return [self._alone(request, feed) for request, feed in zip(requests, feeds, strict=True)]
        shapes: dict[tuple[Any, ...], list[int]] = {}
        for place, feed in enumerate(feeds):
            shapes.setdefault(tuple(feed[name].shape[1:] for name in self.inputs), []).append(place)
        responses: list[Any] = [None] * len(requests)
        for places in shapes.values():
            together = self._together([requests[place] for place in places], [feeds[place] for place in places])
            for place, response in zip(places, together, strict=True):
                responses[place] = response
        return responses

    def _together(self, requests: list[Any], feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        """The responses to requests of one shape."""
        if len(requests) > 1:
            try:
                answers = self._run_together(feeds)
            except Exception as error:  # noqa: BLE001 - it raises many kinds; each request is answered by itself below
                pb_utils.Logger.log_warn(f"a batch of {len(requests)} failed and runs one by one: {error}")
            else:
                return [self._response(request, arrays) for request, arrays in zip(requests, answers, strict=True)]
        return [self._alone(request, feed) for request, feed in zip(requests, feeds, strict=True)]

    def _run_together(self, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
        joint = self.session.run(
            self.outputs, {name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}
        )
        ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])
        parts = [np.split(array, ends[:-1]) for array in joint]
        return [list(arrays) for arrays in zip(*parts, strict=True)]

    def _alone(self, request: Any, feed: dict[str, np.ndarray]) -> Any:
        try:
            return self._response(request, self.session.run(self.outputs, feed))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must get an answer
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _response(self, request: Any, arrays: list[np.ndarray]) -> Any:
        wanted = set(request.requested_output_names())
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(array))
            for name, array in zip(self.outputs, arrays, strict=True)
            if name in wanted
        ]
        return pb_utils.InferenceResponse(tensors)


def _cancelled() -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError("nobody waits for this any more", pb_utils.TritonError.CANCELLED)
    )


CPU = ["CPUExecutionProvider"]
"""The providers of an instance on the CPU, and of a session that is only looked at."""


def _providers(kind: str, device: str) -> list[Any]:
    """The providers of an instance of ``kind`` GPU or CPU; without CUDA in this ONNX Runtime a GPU's are the CPU's.

    Without TF32: its ten bits of mantissa are another answer than the one that was judged.
    """
    if kind != "GPU" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return CPU
    return [("CUDAExecutionProvider", {"device_id": device, "use_tf32": "0"}), *CPU]


def _session(config: dict[str, Any], providers: list[Any] = CPU) -> ort.InferenceSession:
    """The ONNX Runtime session of the version being loaded; a file that is no model raises TritonModelException."""
    path = Path(pb_utils.get_model_dir()) / (config.get("default_model_filename") or "model.onnx")
    given = {name: value["string_value"] for name, value in (config.get("parameters") or {}).items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(given.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", 0))
    options.log_severity_level = 3
    if "session.intra_op.allow_spinning" in given:
        options.add_session_config_entry("session.intra_op.allow_spinning", given["session.intra_op.allow_spinning"])
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise pb_utils.TritonModelException(f"{path} cannot be loaded: {error}") from error


def _dims(tensor: Any, *, batched: bool) -> list[int]:
    """A graph tensor's shape as Triton writes it: -1 for a free axis, the batch axis left out."""
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return dims[1:] if batched else dims


def _declaration(tensor: Any, *, batched: bool) -> dict[str, Any]:
    if tensor.type not in DATA_TYPES:
        raise pb_utils.TritonModelException(
            f"tensor {tensor.name!r} is a {tensor.type}: export one of {', '.join(DATA_TYPES)}"
        )
    return {"name": tensor.name, "data_type": DATA_TYPES[tensor.type], "dims": _dims(tensor, batched=batched)}


def _check(model: str, config: dict[str, Any], session: ort.InferenceSession, *, batched: bool) -> None:
    """Compare what config.pbtxt declares with the graph: names, types, shapes, and that no input is left out."""
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    undeclared = sorted(inputs.keys() - {tensor["name"] for tensor in config["input"]})
    if undeclared:
        raise pb_utils.TritonModelException(
            f"model {model}: the graph needs input(s) {', '.join(undeclared)}: declare them in config.pbtxt"
        )
    for kind, declared, graph in (("input", config["input"], inputs), ("output", config["output"], outputs)):
        for tensor in declared:
            name = tensor["name"]
            if name not in graph:
                raise pb_utils.TritonModelException(
                    f"model {model}: the graph has no {kind} {name!r}, only {', '.join(sorted(graph))}"
                )
            found = _declaration(graph[name], batched=batched)
            dims = [int(size) for size in tensor["dims"]]
            fits = len(dims) == len(found["dims"]) and all(
                want in (-1, have) or have == -1 for want, have in zip(dims, found["dims"], strict=True)
            )
            if tensor["data_type"] != found["data_type"] or not fits:
                raise pb_utils.TritonModelException(
                    f"model {model}: {kind} {name!r} is declared as {tensor['data_type']} {dims}, the graph has "
                    f"{found['data_type']} {found['dims']}"
                )
