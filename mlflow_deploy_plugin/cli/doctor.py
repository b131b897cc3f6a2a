"""`onnxserve doctor` checks packages, MLflow and the places to which onnxserve writes,
with the functions on which the other commands depend.
"""

import platform
import sys
import tempfile
from collections.abc import Callable

import click

from mlflow_deploy_plugin.cli.options import (
    align_columns,
    opened_store,
    output_option,
    show_result,
)
from mlflow_deploy_plugin.core.errors import RuntimeMissing
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.packages import check_fit, installed_version, own_requirements
from mlflow_deploy_plugin.core.registry.connection import (
    is_mlflow_set,
    redact_credentials,
    registry_address,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.settings import load_settings

_COLLECTIONS = {"", "all", "controller", "dev", "projects"}
"""The extras that only combine other extras, and no extra."""


@click.command()
@output_option
def doctor(output: str) -> None:
    """Check that this environment fits onnxserve.

    A line starts with `ok`, with `--` for something that is not set up, or with
    `FAILED`, and then contains the remedy. Exit status 1 if a check failed.
    """
    rows = []
    for name, (check, remedy) in _CHECKS.items():
        try:
            found = ", ".join(check())
        except Exception as error:  # noqa: BLE001 - In an unfit environment, imports raise any error.
            rows.append(("FAILED", name, f"{redact_credentials(one_line(error))} {remedy}"))
        else:
            rows.append(("ok", name, found) if found else ("--", name, remedy))
    missing = {
        extra for extra, package in own_requirements() if not installed_version(package.name)
    }
    extras = {extra for extra, _ in own_requirements()} - _COLLECTIONS
    rows.append(("ok", "extras", ", ".join(sorted(extras - missing))))
    absent = ", ".join(sorted(extras & missing))
    rows.append(("--", "other extras", f"not installed: {absent}"))
    document = [{"state": state, "check": name, "text": text} for state, name, text in rows]
    show_result(output, document, align_columns(rows))
    if any(state == "FAILED" for state, _, _ in rows):
        sys.exit(1)


def _runtime() -> list[str]:
    from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime

    found = check_fit("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
    if len(found) > 1:
        raise RuntimeMissing(
            f"{' and '.join(found)} contain the same module: uninstall them, and install one with "
            "pip install 'mlflow-onnxserve[cpu]'",
        )
    return [*found, *import_onnxruntime().get_available_providers()]


def _mlflow() -> list[str]:
    if not is_mlflow_set():
        return []
    with registry_errors("MLflow"):
        client = registry_client()
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return [registry_address()]


def _home() -> list[str]:
    home = load_settings().home_path
    home.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=home).close()
    return [str(home)]


def _store() -> list[str]:
    with opened_store():
        return ["it has the schema of this release"]


def _log() -> list[str]:
    from mlflow_deploy_plugin.serve.inference_log import storage

    location = storage.locate_log(load_settings().inference_log)
    with storage.wrap_log_errors(location):
        return storage.list_endpoints(location)


_CHECKS: dict[str, tuple[Callable[[], list[str]], str]] = {
    "Python": (lambda: [platform.python_version()], ""),
    "MLflow": (lambda: check_fit("mlflow", "mlflow-skinny"), ""),
    "numpy": (lambda: check_fit("numpy"), ""),
    "ONNX Runtime": (_runtime, ""),
    "MLflow's server": (
        _mlflow,
        "(MLFLOW_TRACKING_URI is not set, or not the address of an MLflow server)",
    ),
    "home": (_home, "(set ONNXSERVE_HOME to a folder that you can write)"),
    "store": (_store, "(set ONNXSERVE_STORE_URI to a database)"),
    "log": (_log, "no rows are captured: set capture.fraction of an endpoint"),
}
"""A check → its function, which returns nothing if it is not set up, and the remedy."""
