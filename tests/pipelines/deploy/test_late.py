"""pipelines/deploy/rollout.py where Triton has hardly any time: a version that is late is not one that is dead."""

from __future__ import annotations

import time

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from pipelines.cases import load_fields
from pipelines.deploy import repository, rollout, triton
from pipelines.errors import Unavailable
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, month, registered
from tests.serving.gateway.world import Scores, fake_triton


class Busy(Scores):
    """A Triton that loads and unloads what it is told to; each inference of it takes ``seconds``, or fails at once."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.told = []

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        """One inference."""
        if not self.seconds:
            context.abort(grpc.StatusCode.INTERNAL, "Stub process is not healthy.")
        time.sleep(self.seconds)
        return pb.ModelInferResponse()

    def RepositoryModelLoad(self, request, context):  # noqa: N802 - gRPC's name
        """Load a model."""
        del context
        self.told.append(f"load {request.model_name}")
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request, context):  # noqa: N802 - gRPC's name
        """Unload a model, all versions of it."""
        del context
        self.told.append(f"unload {request.model_name}")
        return pb.RepositoryModelUnloadResponse()


@pytest.mark.parametrize(
    ("seconds", "patience", "told"),
    [(1.0, 0.2, [f"load {CASE}"]), (0.0, 60.0, [f"load {CASE}", f"unload {CASE}", f"load {CASE}"])],
)
def test_versions_that_are_late_are_not_unloaded(tmp_path, monkeypatch, seconds, patience, told):
    """Where inferences take too long, also of a version that was loaded anew, all versions of the case go on answering.

    Only one that fails though it was loaded anew is worth unloading them for.
    """
    monkeypatch.setattr(triton, "ANSWER_SECONDS", patience)
    fields = load_fields(CASE)
    with fake_triton(servicer=Busy(seconds)) as (servicer, port):
        settings = Settings(home=tmp_path, triton_grpc=f"127.0.0.1:{port}", actor="ada")
        bundle = registered(settings, month(1), 1, bias=0.1) / "export"
        repository.stage(settings.model_repository, CASE, 1, bundle)
        with pytest.raises(Unavailable):
            rollout._revive(settings, fields, 1, bundle)
        assert servicer.told == told
