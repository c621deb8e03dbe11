"""A case with a declared source, and what it takes in: the shop's rows in an empty state."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.data import lake
from pipelines.errors import PerennialError
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.verbs import ingest, validate

AS_OF = datetime(2024, 2, 16, tzinfo=UTC)
ROWS = 15 * 24
"""One an hour from the first of February to AS_OF."""


def declare(home: Path, **source):
    """Declare the shop's source."""
    path = home / "cases" / "shop" / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"source": source}))


def settings(home: Path) -> Settings:
    """Where everything is."""
    return Settings(home=home / "home", data_dir=home / "data")


def taken(home: Path) -> pl.DataFrame:
    """The rows that ingest and validate take in, by time."""
    params, where = load_params("shop"), settings(home)
    folder = where.run_dir("shop", AS_OF)
    manifest = ingest.run(params, where, folder, AS_OF)
    assert validate.run(params, where, folder, AS_OF).facts["bad"] == 0
    return lake.read_days(where, manifest.facts["partitions"])


def facts(home: Path):
    """What ingest says of its source."""
    where = settings(home)
    return ingest.run(load_params("shop"), where, where.run_dir("shop", AS_OF), AS_OF).facts["source"]


def refused(home: Path, kind: type[PerennialError], *words: str) -> None:
    """Ingest fails with an error of this kind and these words, and leaves nothing in the lake."""
    with pytest.raises(kind) as caught:
        taken(home)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "source.py, line" not in str(caught.value)
    assert not list((home / "home" / "lake").rglob("*.parquet"))
    assert not (settings(home).run_dir("shop", AS_OF) / "ingest").exists()


def csv(home: Path) -> pl.DataFrame:
    """The shop's rows as texts."""
    return pl.read_csv(home / "data" / "shop.csv", infer_schema=False)


def typed(home: Path) -> pl.DataFrame:
    """The shop's rows as a table keeps them."""
    return pl.read_csv(home / "data" / "shop.csv").with_columns(pl.col("event_time").str.to_datetime(time_zone="UTC"))


class Web(BaseHTTPRequestHandler):
    """Serves ``server.files``; breaks off, or refuses, where it is told to."""

    def do_HEAD(self):
        """What a file is."""
        self._answer(body=False)

    def do_GET(self):
        """A file, or its beginning."""
        self._answer(body=True)

    def _answer(self, *, body):
        self.server.asked.append((self.command, self.path))
        status, data, sent = self.server.files.get(self.path, (404, b"", 0))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body:
            self.wfile.write(data[:sent])

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def web():
    """A real HTTP server on a free port: its address, its files and what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.files, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
