"""docker/requirements.txt against the import graph of what runs in the image; needs no Docker."""

import re
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
ROOTS = [
    "mlflow_deploy_plugin.cli.serve",
    "mlflow_deploy_plugin.server.http.app",
    "mlflow_deploy_plugin.server.http.fastpath",
    "mlflow_deploy_plugin.server.http.front",
    "mlflow_deploy_plugin.server.http.gthread",
    "mlflow_deploy_plugin.server.http.worker",
    "mlflow_deploy_plugin.agent.__main__",
]
MODULE_OF = {
    "grpcio": "grpc",
    "mlflow-skinny": "mlflow",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "protobuf": "google",
    "pysimdjson": "simdjson",
    "pyyaml": "yaml",
}
NOT_IMPORTED_BY_US = {"boto3", "uvloop"}  # MLflow opens s3:// with the one, uvicorn its loop


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """Top-level third-party modules that the server, the agent and `serve` import, directly or through our modules."""
    graph = grimp.build_graph("mlflow_deploy_plugin", include_external_packages=True, cache_dir=None)
    reached = set().union(*(graph.find_upstream_modules(root) for root in ROOTS))
    external = {name.split(".")[0] for name in reached if graph.is_module_squashed(name)}
    return external - set(sys.stdlib_module_names)


def test_every_module_that_is_imported_is_listed_and_no_other(imported: set[str]) -> None:
    lines = (ROOT / "docker" / "requirements.txt").read_text().splitlines()
    listed = {line.strip() for line in lines if re.match(r"[a-z]", line)}
    modules = {MODULE_OF.get(name, name.replace("-", "_")) for name in listed - NOT_IMPORTED_BY_US}
    assert modules | {"onnxruntime"} == imported
