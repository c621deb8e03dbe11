"""What a start and a status learn from Triton about the ledger's champions."""

import shutil

import pytest

from embedded import doctor, probe, triton
from pipelines import ledger
from pipelines.deploy import triton as calls
from pipelines.errors import Unavailable
from tests.pipelines.candidates import CASE
from tests.pipelines.releases import answering, kill_stub, promote

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(triton_server):
    """``(settings, ports)`` of a state folder with champion 1 of the bank case in its Triton.

    The rollout step put it there.
    """
    home, ports = triton_server
    settings = triton.settings(home, ports)
    promote(settings, 1)
    return settings, ports


def test_without_a_ledger_there_is_no_champion(tmp_path):
    """A new state folder has no champions, and asking makes no ledger."""
    assert probe.champions(tmp_path) == []
    assert not (tmp_path / "ledger.db").exists()


def test_a_dead_stub_is_noticed_and_a_start_revives_it(served):
    """With its stub killed the champion's probe fails, naming case and version, although Triton is ready.

    Restoring brings it back.
    """
    settings, ports = served
    assert probe.champions_answer(settings.root, ports)
    kill_stub(settings, 1)
    with pytest.raises(Unavailable, match=f"case {CASE}: champion 1"):
        probe.champions_answer(settings.root, ports)
    broken = []
    assert probe.restore(settings.root, ports, broken)
    assert broken == []
    assert probe.champions_answer(settings.root, ports)


def test_the_doctor_and_a_retirement_go_by_a_real_triton(served):
    """The doctor names the server and what is loaded; a champion that was unloaded is wrong, a retired one is not."""
    settings, ports = served
    [line] = doctor.triton(settings)
    assert (line.state, line.said.partition(" at ")[0]) == ("ok", "triton 2.51.0")
    assert line.said.endswith("1 model(s) loaded")
    calls.unload(settings, CASE)
    assert [(line.state, line.mend) for line in doctor.triton(settings)][1:] == [
        ("wrong", f"`perennial reconcile --case {CASE}`")
    ]
    ledger.set_retired(settings.ledger, CASE, retired=True, reason="old", actor="ada")
    assert probe.champions(settings.root) == []
    assert [line.state for line in doctor.triton(settings)] == ["ok"]
    assert probe.restore(settings.root, ports, [])
    assert answering(settings, 1) == []
    ledger.set_retired(settings.ledger, CASE, retired=False, reason="new", actor="ada")
    assert probe.restore(settings.root, ports, [])
    assert answering(settings, 1) == [1]


def test_a_lost_model_is_staged_again_and_a_lost_bundle_is_said(served):
    """A champion that the model repository lost comes back from its bundle.

    Without the bundle its case and the reason are reported.
    """
    settings, ports = served
    shutil.rmtree(settings.model_repository / CASE)
    broken = []
    probe.restore(settings.root, ports, broken)
    assert broken == []
    assert answering(settings, 1) == [1]
    shutil.rmtree(settings.root / "artefacts")
    probe.restore(settings.root, ports, broken)
    assert len(broken) == 1
    assert broken[0].startswith(f"case {CASE}, champion 1: ")
