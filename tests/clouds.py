"""Google Cloud Storage and Azure's blob storage as emulators on this machine, for tests of stores.

`make test-stores` installs what they need; elsewhere :func:`missing` says what is not there.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.stores import BUCKET


@dataclass
class Cloud:
    """A store whose logins are checked: where it is, what its login is, and how objects are written."""

    protocol: str
    login: dict[str, Any]
    """What a secret file holds."""
    connection: str
    """The same as an Airflow connection."""
    wrong: dict[str, Any]
    """A login that is refused."""
    secret: str
    """A part of both that nobody may read in a message."""
    write: Any = field(repr=False, default=None)
    away: dict[str, Any] = field(default_factory=dict)
    """A login that leads where nobody is."""

    def put(self, key: str, data: bytes) -> str:
        """Write an object; returns its address."""
        self.write(key, data)
        return self.url(key)

    def url(self, key: str, bucket: str = BUCKET) -> str:
        """The address of an object."""
        return f"{self.protocol}://{bucket}/{key}"


def missing(protocol: str) -> str:
    """Why a cloud cannot be played here; "" if it can."""
    wanted = {"gs": ("gcsfs", "gcp_storage_emulator"), "abfs": ("adlfs",)}[protocol]
    lacks = [name for name in wanted if importlib.util.find_spec(name) is None]
    if protocol == "abfs" and azurite() is None:
        lacks.append("azurite")
    return f"{' and '.join(lacks)} not installed: make test-stores (docs/development.md)" if lacks else ""


def azurite() -> str | None:
    """The program that plays Azure: beside the environment of `make test-stores`, else on the PATH."""
    beside = Path(sys.prefix) / "node_modules" / ".bin" / "azurite-blob"
    return str(beside) if beside.exists() else shutil.which("azurite-blob")


@contextmanager
def gs() -> Iterator[Cloud]:  # noqa: C901 - the door's class needs the emulator's
    """Google's API (gcp-storage-emulator) behind a door that knows one service account and gives it a token.

    The emulator lets everybody in; what the door answers to others are Google's own words.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage
    from google.auth import jwt

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = serialization.Encoding.PEM
    private = key.private_bytes(text, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    public = key.public_key().public_bytes(text, serialization.PublicFormat.SubjectPublicKeyInfo)
    token = base64.urlsafe_b64encode(os.urandom(24)).decode()
    nobody = "does not have storage.objects.get access to the Google Cloud Storage object."

    class Door(RequestHandler):
        def do_GET(self):  # noqa: N802 - http.server's names
            if self.allowed():
                super().do_GET()

        def do_POST(self):  # noqa: N802
            if self.path == "/token":
                self.sign_in()
            elif self.allowed():
                super().do_POST()

        def allowed(self) -> bool:
            given = self.headers.get("Authorization")
            if given == f"Bearer {token}":
                return True
            who, status = ("Anonymous caller", 401) if given is None else ("Somebody", 403)
            self.say(status, {"error": {"code": status, "message": f"{who} {nobody}"}})
            return False

        def sign_in(self):
            asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            try:
                jwt.decode(asked["assertion"][0], certs=public)
                self.say(200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
            except ValueError:
                self.say(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})

        def say(self, status, what):
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Door, storage)) as server, pytest.MonkeyPatch.context() as patch:
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        # It asks for the kind of a bucket by gRPC, which no emulator speaks; and for a login that only Google's
        # machines have.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("NO_GCE_CHECK", "true")

        def write(name, data):
            url = (
                f"{server.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
            )
            headers = {"Content-Type": "text/plain", "Authorization": f"Bearer {token}"}
            request = urllib.request.Request(url, data, headers, method="POST")
            urllib.request.urlopen(request, timeout=10).close()

        account = {
            "type": "service_account",
            "project_id": "shop",
            "private_key_id": os.urandom(20).hex(),
            "private_key": private,
            "client_email": "somebody@shop.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{server.url}/token",
        }
        other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        stranger = other.private_bytes(text, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        extra = {"keyfile_dict": json.dumps(account), "project": "shop", "scope": ""}
        try:
            yield Cloud(
                "gs",
                account,
                json.dumps({"conn_type": "google_cloud_platform", "extra": extra}),
                account | {"private_key": stranger},
                private.splitlines()[3],
                write,
                {"token": "anon", "endpoint_url": "http://127.0.0.1:9"},
            )
        finally:
            server.shutdown()


@contextmanager
def abfs() -> Iterator[Cloud]:
    """Azure's blob storage (azurite), which checks the signatures of logins itself."""
    from azure.core.exceptions import AzureError
    from azure.storage.blob import BlobServiceClient

    account = "devstoreaccount1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The key of every azurite, which its documentation names.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def address(key: str, port: int = port) -> str:
        where = f"http://127.0.0.1:{port}/{account}"
        return f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={where};"

    command = [azurite(), "--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    process = subprocess.Popen([*command, "--blobPort", str(port)], stdout=subprocess.DEVNULL)
    try:
        client = BlobServiceClient.from_connection_string(address(key), retry_total=0)
        give_up = time.monotonic() + 60
        while True:
            try:
                client.create_container(BUCKET)
                break
            except AzureError:
                assert time.monotonic() < give_up
                assert process.poll() is None
                time.sleep(0.2)

        def write(name, data):
            client.get_blob_client(BUCKET, name).upload_blob(data, overwrite=True)

        extra = {"extra__wasb__connection_string": address(key), "extra__wasb__tenant_id": ""}
        yield Cloud(
            "abfs",
            {"connection_string": address(key)},
            json.dumps({"conn_type": "wasb", "extra": json.dumps(extra)}),
            {"connection_string": address(base64.b64encode(os.urandom(64)).decode())},
            "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",
            write,
            {"connection_string": address(key, 9)},
        )
    finally:
        process.terminate()
        process.wait(10)
