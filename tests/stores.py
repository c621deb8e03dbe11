"""A real S3 API on this machine (moto), for tests of stores."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import pytest

BUCKET = "box"


@dataclass(frozen=True)
class Store:
    """An S3 server: its address, a client, and how to make it ask for logins that it knows (it knows none)."""

    url: str
    client: Any

    def put(self, key: str, data: bytes) -> str:
        """Write an object; returns its address."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def refuse_logins(self) -> None:
        """From now on every login is a wrong one."""
        self._auth("0")

    def take_logins(self) -> None:
        """From now on every login is a right one."""
        self._auth("inf")

    def _auth(self, calls: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", calls.encode(), plain, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


def _one_at_a_time(put: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A put as S3 has it: moto looks for ``If-None-Match`` and writes in two moves, and another one comes between."""
    alone = Lock()

    def wait_and_put(request: Any) -> Any:
        with alone:
            return put(request)

    return wait_and_put


@contextmanager
def s3() -> Iterator[Store]:
    """A server with an empty bucket, and the environment that leads every client to it."""
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", _one_at_a_time(S3Response.put_object))
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "my-secret-words",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        try:
            yield Store(url, client)
        finally:
            server.stop()
