"""schemathesis tests the served OpenAPI document on a real server."""

import importlib.util
import subprocess
import sys

import pytest

from tests.support.waiting import EXPLAINER_SECONDS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]
FILE = """
import sys
from schemathesis.cli import schemathesis
schemathesis(sys.argv[1:])
"""


@pytest.mark.long
def test_server_conforms_to_its_document(pages_server, tmp_path):
    """A table by the plain routes and its own routes, a tensor by its own routes, with
    the same requests in every run: 20 random requests per operation, and requests
    derived from the document's bounds.
    """
    paths = "/(flights|digits)([/:]|$)|^/[^/]*$|^/predict/|^/v2/health|^/v2/repository/index"
    command = [
        *(sys.executable, "-c", FILE, "run", pages_server.url + "/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--include-path-regex", paths, "--max-examples", "20", "--seed", "1"),
        *(
            "--request-timeout",
            str(EXPLAINER_SECONDS),
            "--continue-on-failure",
            "--generation-database",
            "none",
        ),
    ]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " 0 failed" not in run.stdout
    assert pages_server.process.poll() is None
