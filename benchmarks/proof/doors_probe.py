"""Ask a gateway's ``/healthz`` every few milliseconds, in a process of its own, until standard input ends.

``python -m benchmarks.proof.doors_probe PORT`` prints one JSON line: how many seconds each answer took, a new
connection for it included, how many of them the kernel took to connect, how many answers were not 200, and by how much
the longest pause between two questions was too long, which is what the machine took and not the gateway.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time

PAUSE = 0.02
PATIENCE = 30.0


def main() -> None:
    """Probe until told to end."""
    port = int(sys.argv[1])
    took = list[float]()
    connected = list[float]()
    failed = 0
    late = 0.0
    while True:
        began = time.monotonic()
        if select.select([sys.stdin], [], [], PAUSE)[0]:
            break
        late = max(late, time.monotonic() - began - PAUSE)
        status, to_connect, whole = ask(port)
        failed += status != http.client.OK
        connected.append(round(to_connect, 4))
        took.append(round(whole, 4))
    print(json.dumps({"took": took, "connected": connected, "failed": failed, "late": round(late, 4)}))


def ask(port: int) -> tuple[int, float, float]:
    """One answer's status, 0 if there is none; the seconds to its connection, and those to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    began = time.monotonic()
    status = 0
    connected = PATIENCE
    try:
        connection.connect()
        connected = time.monotonic() - began
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except OSError:
        pass
    finally:
        connection.close()
    return status, connected, time.monotonic() - began


if __name__ == "__main__":
    main()
