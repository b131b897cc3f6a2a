"""A server's page `/metrics`, served by a thread."""

import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

PACKAGE = Path(__file__).parents[2] / "mlflow_deploy_plugin"

PAGE = """# TYPE onnxserve_requests_total counter
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="mlflow",status="200"} 90
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="200"} 5
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="mlflow",status="400"} 3
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="500"} 2
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="6",protocol="grpc",status="499"} 7
onnxserve_requests_total{endpoint="f",variant="main",model="X",version="5",protocol="mlflow",status="200"} 8
onnxserve_requests_total{endpoint="f",variant="main",model="Y",version="4",protocol="mlflow",status="200"} 1
onnxserve_requests_total{endpoint="f",variant="new",model="X",version="7",protocol="mlflow",status="200"} 4
onnxserve_requests_total{endpoint="g",variant="main",model="X",version="6",protocol="mlflow",status="200"} 1000
onnxserve_requests_total{endpoint="",variant="",model="",version="",protocol="mlflow",status="404"} 11
# TYPE onnxserve_request_duration_seconds histogram
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",model="X",version="6",protocol="v2",le="0.1"} 80
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",model="X",version="6",protocol="v2",le="+Inf"} 93
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",model="X",version="6",protocol="grpc",le="0.1"} 6
onnxserve_request_duration_seconds_bucket{endpoint="f",variant="main",model="X",version="6",protocol="grpc",le="+Inf"} 7
# TYPE onnxserve_shadow_rows_total counter
onnxserve_shadow_rows_total{endpoint="f",variant="copy",model="X",version="7",agreement="same"} 30
onnxserve_shadow_rows_total{endpoint="f",variant="copy",model="X",version="7",agreement="different"} 12
# TYPE onnxserve_shadow_requests_total counter
onnxserve_shadow_requests_total{endpoint="f",variant="copy",model="X",version="7",outcome="compared"} 42
onnxserve_shadow_requests_total{endpoint="f",variant="copy",model="X",version="7",outcome="failed"} 3
# TYPE onnxserve_last_request_timestamp_seconds gauge
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="5"} 100
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="6"} 200
onnxserve_last_request_timestamp_seconds{endpoint="f",model="X",version="7"} 300
"""  # noqa: E501


@contextmanager
def serving(pages, wrap=lambda server: "http"):
    """Serve pages by their path; `wrap` changes the server before it starts, and
    returns its scheme.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, "").encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    scheme = wrap(server)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"{scheme}://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def undeclared_metrics(expressions):
    """Return the metrics of PromQL expressions that the package declares nowhere."""
    metrics = set(re.findall(r"\b(?:onnxserve|ml)_\w+", expressions))
    package = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    names = {name: re.sub("_(total|bucket|sum|count)$", "", name) for name in metrics}
    return {name for name, family in names.items() if f'"{family}"' not in package}
