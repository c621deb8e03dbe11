"""pipelines/registry/monitoring.py against a real MLflow: a window's page in its run."""

import pytest

from pipelines.registry import monitoring
from tests.pipelines.alerts.found import NOW, report

pytestmark = pytest.mark.slow


def test_a_window_has_one_run_with_its_page_and_figures(settings, client, tmp_path):
    """The run holds the page, the policy's word and the figures; writing again adds none, another key mends it.

    The champion's run says where the newest page is.
    """
    page = tmp_path / "index.html"
    page.write_text("<p>one</p>")
    trained = client.create_run(client.create_experiment("trainings-of-monitoring")).info.run_id
    moved = {"psi": 0.5, "debiased_psi": 0.4, "ks": None, "ks_error": None, "p_value": 0.0, "severity": "severe"}
    found = report(
        case="monitored",
        state="RETRAINING",
        action="retrain",
        episode="e1",
        headroom={"code": "measured", "price": 0.02, "gain": {"value": 0.08, "low": 0.05, "high": 0.11}},
        features=[
            {"feature": "size", "drifted": True, **moved},
            {"feature": "month", "drifted": False, "ignored": True, **moved, "debiased_psi": 9.0},
        ],
    )

    def publish(key: str) -> str:
        return monitoring.publish(
            settings, as_of=NOW, key=key, report=found, headline="The inputs moved", files=[page], champion=trained
        )

    place = publish("k1")
    assert publish("k1") == publish("k2") == place
    home = client.get_experiment_by_name("monitored-monitoring").experiment_id
    [run] = client.search_runs([home])
    assert place == f"#/experiments/{home}/runs/{run.info.run_id}"
    assert (run.info.status, run.data.metrics) == (
        "FINISHED",
        {
            "rows": 400.0,
            "largest_debiased_psi": 0.4,
            "headroom_gain": 0.08,
            "headroom_low": 0.05,
            "headroom_high": 0.11,
            "headroom_price": 0.02,
        },
    )
    said = {
        name: run.data.tags[f"perennial.{name}"] for name in ("state", "action", "episode", "model_version", "report")
    }
    assert said == {
        "state": "RETRAINING",
        "action": "retrain",
        "episode": "e1",
        "model_version": "3",
        "report": "k2",
    }
    assert run.data.tags["mlflow.note.content"] == "The inputs moved"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["index.html"]
    assert client.get_run(trained).data.tags[monitoring.NEWEST] == f"{NOW.isoformat()} {place}"
