"""What a start and a status learn from Triton about the ledger's champions."""

import shutil

import pytest

from embedded import probe, triton
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
