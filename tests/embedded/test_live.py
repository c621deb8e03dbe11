"""Which DAGs `make up` sets going, and in which order."""

import pytest

from embedded import live
from pipelines import installation, ledger
from pipelines.case_files import case_names
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests import shop

LIVE = [case for case in case_names() if load_params(case).schedule.live]


class Recorder:
    """An Airflow that writes down what is asked of it; a training run ends at the third look."""

    def __init__(self, state="success"):
        self.asked = []
        self.looks = 0
        self.state = state

    def wait_for_dags(self, names):
        """All DAGs are there."""
        self.asked.append(("wait", tuple(names)))

    def pause(self, dag, *, paused=True):
        """Write it down."""
        self.asked.append(("pause" if paused else "unpause", dag))

    def unpause(self, dag):
        """Write it down."""
        self.pause(dag, paused=False)

    def runs(self, dag):
        """No run, a running one, an ended one."""
        self.looks += 1
        self.asked.append(("look", dag))
        return [[], [{"state": "running"}], [{"state": self.state}]][min(self.looks, 3) - 1]


@pytest.fixture
def airflow(monkeypatch):
    """The recorder in place of Airflow."""
    recorder = Recorder()
    monkeypatch.setattr(live, "Airflow", lambda _url: recorder)
    monkeypatch.setattr(live.time, "sleep", lambda _seconds: None)
    return recorder


def test_historical_cases_stay_paused(airflow, tmp_path):
    """Live cases end with all their DAGs unpaused, the others with all theirs paused."""
    assert live.open_live_cases("http://x", tmp_path, print) == LIVE
    final = {dag: what for what, dag in airflow.asked if what in ("pause", "unpause")}
    assert final == {
        f"{case}_{kind}": "unpause" if case in LIVE else "pause" for case in case_names() for kind in live.KINDS
    }


def test_drift_waits_for_the_first_champion(airflow, tmp_path):
    """A live case without a champion gets its drift DAG only after its first training run has ended."""
    live.open_live_cases("http://x", tmp_path, print)
    case = LIVE[0]
    assert airflow.asked.index(("unpause", f"{case}_training")) < airflow.asked.index(("look", f"{case}_training"))
    assert airflow.asked.index(("unpause", f"{case}_drift")) > len(airflow.asked) - 1 - airflow.asked[::-1].index(
        ("look", f"{case}_training")
    )


def test_a_failed_first_run_is_said_and_does_not_stop_the_rest(airflow, tmp_path, capsys):
    """If the first training run fails, the user is told where to look and the drift DAG runs all the same."""
    airflow.state = "failed"
    live.open_live_cases("http://x", tmp_path, print)
    assert f"look at {LIVE[0]}_training" in capsys.readouterr().out
    assert ("unpause", f"{LIVE[0]}_drift") in airflow.asked


def test_drift_waits_for_the_days_that_traffic_makes_up_for(airflow, tmp_path, monkeypatch, capsys):
    """With traffic a live case's drift DAG starts when the rows and labels up to midnight are sent.

    Where they do not come it is said, and it starts all the same.
    """
    looks = []

    def caught_up(settings, case, until):
        airflow.asked.append(("sent?", case))
        looks.append(until)
        return len(looks) > 2

    monkeypatch.setattr(live.traffic, "caught_up", caught_up)
    live.open_live_cases("http://x", tmp_path, print, traffic_runs=True)
    case = LIVE[0]
    asked = [what for what, about in airflow.asked if about in (case, f"{case}_drift")]
    assert asked[-4:] == ["sent?", "sent?", "sent?", "unpause"]
    assert {(moment.hour, moment.minute, moment.second, moment.microsecond) for moment in looks} == {(0, 0, 0, 0)}
    assert "not all sent" not in capsys.readouterr().out

    looks.clear()
    monkeypatch.setattr(live, "CATCH_UP_SECONDS", -1.0)
    live.open_live_cases("http://x", tmp_path, print, traffic_runs=True)
    assert f"rows of {case} are not all sent yet" in capsys.readouterr().out
    assert airflow.asked[-1] == ("unpause", f"{LIVE[-1]}_drift")


def test_a_broken_case_is_left_alone(airflow, tmp_path):
    """A case that cannot work is said with the reason, nobody waits for its DAGs.

    The live cases beside it are set going.
    """
    said = []
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.edit(shop.write(root, name) / "params.yaml", ("live: false", "live: true"))
        shop.edit(root / "shop" / "params.yaml", ("epochs:", "epoch:"))
        assert live.open_live_cases("http://x", tmp_path, said.append) == ["desk"]
    assert not [dag for what, dag in airflow.asked if what != "wait" and dag.startswith("shop")]
    assert [dags for what, dags in airflow.asked if what == "wait"] == [tuple(f"desk_{kind}" for kind in live.KINDS)]
    assert "shop is broken" in said[0]
    assert "train.epoch" in said[0]


def test_a_retired_case_stays_paused(airflow, tmp_path):
    """The DAGs of a live case that somebody has retired are paused at every start, and that is said."""
    said = []
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.edit(shop.write(root, name) / "params.yaml", ("live: false", "live: true"))
        ledger.set_retired(Settings(home=tmp_path).ledger, "shop", retired=True, reason="old", actor="ada")
        assert live.open_live_cases("http://x", tmp_path, said.append) == ["desk"]
    assert {what for what, dag in airflow.asked if what != "wait" and dag.startswith("shop")} == {"pause"}
    assert "the case shop is left alone: shop is retired since" in said[0]


def test_an_example_that_has_begun_goes_on(airflow, tmp_path, monkeypatch):
    """A case of the package that the ledger knows is not paused when somebody brings a live case of their own."""
    monkeypatch.setattr(installation, "CHECKOUT", False)
    monkeypatch.setenv("PERENNIAL_CASES", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    settings = Settings(home=tmp_path)
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk", "lamp"):
            shop.edit(shop.write(root, name) / "params.yaml", ("live: false", "live: true"))
        for retired in (True, False):
            ledger.set_retired(settings.ledger, "desk", retired=retired, reason="tried", actor="ada")
        (root / "shop").rename(tmp_path / "mine" / "shop")
        assert live.open_live_cases("http://x", tmp_path, print) == ["desk", "shop"]
    assert ("unpause", "desk_drift") in airflow.asked
    assert ("unpause", "lamp_drift") not in airflow.asked


def test_the_cases_of_a_package_are_examples(tmp_path, monkeypatch):
    """Those that an installed package brings are set going only where nobody has a live case of their own."""
    monkeypatch.setattr(installation, "CHECKOUT", False)
    monkeypatch.setenv("PERENNIAL_CASES", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.edit(shop.write(root, name) / "params.yaml", ("live: false", "live: true"))
        assert live.traffic.live_cases() == ["desk", "shop"]
        (root / "shop").rename(tmp_path / "mine" / "shop")
        assert live.traffic.live_cases() == ["shop"]
        assert live.traffic.live_cases(begun=["desk", "gone"]) == ["desk", "shop"]
        monkeypatch.setattr(installation, "CHECKOUT", True)
        assert live.traffic.live_cases() == ["desk", "shop"]
