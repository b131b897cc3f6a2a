"""Compare the requirements of the serving images with the import graph of their
processes; needs no Docker.
"""

import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "mlflow_deploy_plugin"
ROOTS = [
    "mlflow_deploy_plugin.cli.serve",
    "mlflow_deploy_plugin.serve.supervisor",
    "mlflow_deploy_plugin.serve.gunicorn_conf",
    "mlflow_deploy_plugin.serve.grpc.grpc_server",
    "mlflow_deploy_plugin.serve.http.app",
    "mlflow_deploy_plugin.serve.http.workers.connection",
    "mlflow_deploy_plugin.serve.http.workers.worker_app",
    "mlflow_deploy_plugin.serve.http.workers.fast_worker",
    "mlflow_deploy_plugin.serve.agent.__main__",
]
MODULE_OF = {
    "grpcio": "grpc",
    "pyjwt": "jwt",
    "mlflow-skinny": "mlflow",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "protobuf": "google",
    "pyopenssl": "OpenSSL",
    "pysimdjson": "simdjson",
    "pyyaml": "yaml",
}

NOT_TAKEN = [
    ("mlflow_deploy_plugin.core.registry.connection", "mlflow_deploy_plugin.core.store"),
    ("mlflow_deploy_plugin.serve.inference_log.labels", "duckdb"),
    ("mlflow_deploy_plugin.cli.options", "mlflow_deploy_plugin.ship.deployments"),
    ("mlflow_deploy_plugin.cli.options", "mlflow_deploy_plugin.core.store"),
    ("mlflow_deploy_plugin.core.registry.transitions", "mlflow_deploy_plugin.core.store"),
    ("mlflow_deploy_plugin.serve.agent.control", "mlflow_deploy_plugin.core.store"),
    ("mlflow_deploy_plugin.serve.agent.keys", "mlflow_deploy_plugin.core.store"),
]
"""Imports within functions that no server takes: SQLAlchemy for options of other
commands, the audit trail and keys of a store, and DuckDB for labels.
"""


@pytest.fixture(scope="module")
def imported():
    """Return top-level third-party modules that the server, the agent and `serve`
    import, directly or through our modules.
    """
    graph = grimp.build_graph(
        PACKAGE, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    for importer, folder in NOT_TAKEN:
        for module in graph.find_modules_directly_imported_by(importer):
            if f"{module}.".startswith(f"{folder}."):
                graph.remove_import(importer=importer, imported=module)
    reached = set().union(*(graph.find_upstream_modules(root) for root in ROOTS))
    external = {name.split(".")[0] for name in reached if graph.is_module_squashed(name)}
    return external - set(sys.stdlib_module_names)


@pytest.mark.long
def test_server_starts_without_left_out_packages():
    left_out = {"alembic", "onnx", "pandas", "simdjson", "sqlalchemy"}
    code = f"import sys; sys.modules.update(dict.fromkeys({left_out})); import {', '.join(ROOTS)}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.long
def test_requirements_list_exactly_the_imported_modules(imported):
    (command,) = re.findall(
        r"python (requirements.py --serve .*) > ", (ROOT / "docker" / "Dockerfile").read_text()
    )
    name, *extras = command.replace("${EXTRAS}", "signing").split()
    program = [sys.executable, ROOT / "docker" / name, *extras]
    lines = subprocess.run(
        program, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    listed = {re.split(r"[ \[<>=]", line)[0] for line in lines}
    modules = {MODULE_OF.get(name, name.replace("-", "_")) for name in listed}
    # Add the modules of the stage for CPU or GPU, of boto3, of tokenizers, which is
    # installed without dependencies, of the optional wheel of projects/trees, and of
    # databricks-sdk, which is used only if MLflow has imported it.
    others = {"onnxruntime", "pynvml", "botocore", "tokenizers", "onnxserve_trees", "databricks"}
    assert modules | others == imported
