"""The gateway behind a real socket: foreign names and foreign pages are turned away."""

from __future__ import annotations

import pytest

from tests.serving.gateway.world import KEY, LABELS, PREDICT, client, fake_triton, lines, make_home, release, some_rows

FOREIGN = "http://evil.example"


@pytest.fixture(scope="module")
def open_gateway(tmp_path_factory):
    """``(http, settings)`` of a gateway without keys.

    Programs call it gateway, people perennial.example.org.
    """
    with fake_triton() as (_, port):
        names = {"gateway_url": "http://gateway:8090", "allowed_hosts": "perennial.example.org"}
        settings = make_home(tmp_path_factory.mktemp("open"), port, **names)
        release(settings, 1)
        with client(settings, auth=False) as http:
            del http.headers["X-API-Key"]
            yield http, settings


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/nowhere", "/docs/assets/swagger-ui.css"]
)
def test_a_foreign_name_reads_nothing(open_gateway, path):
    """With a foreign Host every path is 421 that names host and setting; with a name of ours it is what it was."""
    http, _ = open_gateway
    answer = http.get(path, headers={"Host": "evil.example:8090"})
    assert answer.status_code == 421
    assert "evil.example" in answer.json()["error"]
    assert "PERENNIAL_ALLOWED_HOSTS" in answer.json()["error"]
    assert answer.headers["x-frame-options"] == "DENY"
    own = http.get(path).status_code
    assert own in {200, 404}
    for name in ("localhost", "[::1]:8090", "gateway:8090", "Perennial.example.org"):
        assert http.get(path, headers={"Host": name}).status_code == own


def test_a_foreign_page_writes_nothing(open_gateway):
    """A form of another page is 403 and logs nothing, also without keys.

    Own pages, curl and named hosts' pages are answered.
    """
    http, settings = open_gateway
    forms = {
        PREDICT: ({"rows": some_rows(1)}, "predictions"),
        LABELS: ({"labels": [{"prediction_id": "a", "label": 1}]}, "labels"),
    }
    for path, (body, kind) in forms.items():
        before = len(lines(settings, kind))
        for origin in (FOREIGN, "http://127.0.0.1:1", "null"):
            answer = http.post(path, json=body, headers={"Origin": origin, "Content-Type": "text/plain"})
            assert answer.status_code == 403
            assert "not write here" in answer.json()["error"]
        assert len(lines(settings, kind)) == before
        own = f"http://{http.base_url.host}:{http.base_url.port}"
        for headers in (
            {"Origin": own},
            {"Origin": "https://perennial.example.org"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ):
            assert http.post(path, json=body, headers=headers).status_code == 200
        assert len(lines(settings, kind)) == before + 3
    assert http.get("/healthz", headers={"Origin": FOREIGN}).status_code == 200


def test_a_key_opens_no_foreign_name(world):
    """A right key does not make up for a foreign name or page."""
    for headers, status in (({"Host": "evil.example"}, 421), ({"Origin": FOREIGN}, 403)):
        assert (
            world.http.post(PREDICT, json={"rows": some_rows(1)}, headers={"X-API-Key": KEY, **headers}).status_code
            == status
        )
