"""Not Grafana: it reads what Grafana would read, writes where Grafana would write, and answers /api/health."""

import http.server
import os
from pathlib import Path

PROVISIONING = Path("/etc/grafana/provisioning")
DASHBOARDS = Path("/etc/perennial/dashboards")


class Health(http.server.BaseHTTPRequestHandler):
    """200 for the health check, 404 for everything else: whoever asks for more is told that this is no Grafana."""

    def do_GET(self):
        """Answer."""
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
        self.wfile.write(b'{"database": "ok", "stub": true}')


if not Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text():
    raise SystemExit("the admin's password is empty")
read = [path.read_text() for path in (*PROVISIONING.rglob("*.yaml"), *DASHBOARDS.glob("*.json"))]
if len(read) < 2:
    raise SystemExit(f"no data sources in {PROVISIONING} or no dashboards in {DASHBOARDS}")
Path("/var/lib/grafana/grafana.db").write_text("stub")
http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Health).serve_forever()
