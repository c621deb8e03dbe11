"""What a client gets of an answer, packet by packet."""

import json
import socket
import subprocess
import sys

import pytest

from serving.gateway.connections import _HeadWithBody, predicts
from tests.serving.gateway.world import KEY, PREDICT, some_rows


class Sent(list):
    """A transport that keeps what it is given, write by write."""

    write = list.append
    closed = False

    def close(self):
        """The end."""
        self.closed = True

    def is_closing(self):
        """Whether it was the end."""
        return self.closed


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"body"], [b"HTTP/1.1 200 OK\r\n\r\nbody"]),
        ([b"HTTP/1.1 204 No Content\r\n\r\n", b""], [b"HTTP/1.1 204 No Content\r\n\r\n"]),
        (
            [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200", b"x"],
            [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200x"],
        ),
        ([b"HTTP/1.1 200", b"HTTP/1.1 is", b" a text"], [b"HTTP/1.1 200HTTP/1.1 is", b" a text"]),
    ],
)
def test_the_head_goes_with_the_body(written, sent):
    """Head and first bytes are one write; what is not the head waits for nothing."""
    found = Sent()
    transport = _HeadWithBody(found)
    for data in written:
        transport.write(data)
    assert found == sent


def test_a_head_without_a_body_is_sent_before_the_end():
    """Who closes the connection after the head alone has sent it."""
    found = Sent()
    transport = _HeadWithBody(found)
    transport.write(b"HTTP/1.1 500")
    assert found == []
    assert not transport.is_closing()
    transport.close()
    assert (found, transport.is_closing()) == ([b"HTTP/1.1 500"], True)


def test_a_predict_answer_is_one_packet(world):
    """What the first read from the socket gives is the whole answer, each time."""
    body = json.dumps({"rows": some_rows(1)}).encode()
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", world.http.base_url.port), timeout=10) as connection:
        for _ in range(5):
            connection.sendall(head.encode() + body)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["rows"][0]["version"] == 1


def test_a_process_of_its_own_keeps_what_its_start_has_made(tmp_path):
    """The collector looks through nothing that was there before the first request: that would stop all of them."""
    program = f"""
import asyncio, gc
from pathlib import Path
from serving.gateway.app import create_app
from serving.gateway.settings import Bounds
from tests.serving.gateway.world import make_home

async def main(alone):
    app = create_app(make_home(Path({str(tmp_path)!r})), Bounds(), alone=alone)
    async with app.router.lifespan_context(app):
        print(gc.get_freeze_count() > 50_000)

asyncio.run(main(False))
asyncio.run(main(True))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


BODY = b'{"rows": []}'
WHOLE = b"POST /v1/cases/loans/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n" + BODY


@pytest.mark.parametrize(
    ("data", "case"),
    [
        (WHOLE, "loans"),
        (WHOLE.replace(b"predict ", b"predict?partial=true "), "loans"),
        (WHOLE.replace(b"Content-Length: ", b"content-length:"), "loans"),
        (WHOLE[:-1], ""),
        (WHOLE + b"P", ""),
        (WHOLE + WHOLE, ""),
        (WHOLE[:30], ""),
        (WHOLE.replace(b"POST", b"GET"), ""),
        (WHOLE.replace(b"predict", b"labels"), ""),
        (WHOLE.replace(b"loans", b"lo/ans"), ""),
        (WHOLE.replace(b"loans", b"lo%61ns"), ""),
        (WHOLE.replace(b"Host: a", b"Connection: close"), ""),
        (WHOLE.replace(b"Host: a", b"Transfer-Encoding: chunked"), ""),
        (WHOLE.replace(b"Host: a", b"Transfer-Encoding : chunked"), ""),
        (WHOLE.replace(b"Host: a", b"Expect: 100-continue"), ""),
        (WHOLE.replace(b"Host: a", b"Upgrade: websocket"), ""),
        (WHOLE.replace(b"Host: a", b"Content-Length: 12"), ""),
        (WHOLE.replace(b"Host: a", b"Host: a\nContent-Length: 3"), ""),
        (WHOLE.replace(b"Host: a", b"Host: a\n"), ""),
        (WHOLE.replace(b"12", b"+12"), ""),
        (WHOLE.replace(b"12", b"12, 12"), ""),
        (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"), ""),
        (b"", ""),
    ],
)
def test_only_a_whole_request_in_its_plain_form_is_turned_away_unread(data, case):
    """What ends in another way, is not all there, or could be read in two ways, is left to the parser."""
    assert predicts(data) == case
