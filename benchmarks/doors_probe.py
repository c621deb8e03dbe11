"""Ask a gateway's ``/healthz`` on a new connection every few milliseconds, in a process of its own, until standard input ends.

``python -m benchmarks.doors_probe PORT`` prints one JSON line: the answers' seconds, how many were not 200, and by how much the longest
of its own pauses was too long, which is what the machine took and not the gateway.
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
    port, took, failed, late = int(sys.argv[1]), list[float](), 0, 0.0
    while True:
        began = time.monotonic()
        if select.select([sys.stdin], [], [], PAUSE)[0]:
            break
        late = max(late, time.monotonic() - began - PAUSE)
        began = time.monotonic()
        failed += status(port) != http.client.OK
        took.append(round(time.monotonic() - began, 4))
    print(json.dumps({"took": took, "failed": failed, "late": round(late, 4)}))


def status(port: int) -> int:
    """The status of one answer, 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main()
