"""One gateway with a champion, shared by the tests of a module that do not disturb it."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import hypothesis
import pytest

from pipelines.settings import Settings
from tests.serving.gateway.world import Scores, client, fake_triton, make_home, release

hypothesis.settings.register_profile("many", max_examples=2000, deadline=None)


@dataclass
class World:
    """A running gateway, its state folder and its pretended Triton."""

    http: httpx.Client
    settings: Settings
    triton: Scores


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A gateway whose case loans has the champion 1."""
    with fake_triton() as (triton, port):
        settings = make_home(tmp_path_factory.mktemp("gateway"), port)
        release(settings, 1)
        with client(settings) as http:
            yield World(http, settings, triton)
