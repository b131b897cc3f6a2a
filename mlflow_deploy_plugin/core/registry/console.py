"""The address of the console, a page of MLflow's server if the app `onnxserve` is
installed in it.
"""

from contextlib import suppress
from urllib.parse import urlencode

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.registry.connection import (
    app_answer,
    registry_address,
    registry_errors,
)
from mlflow_deploy_plugin.core.settings import active_workspace

_CONSOLE_FILE = "/onnxserve/console.css"
_CONSOLE_SECONDS = 3
"""A file that MLflow's server serves only if the console is installed, and the timeout
of the check.
"""


def console_page(**query: str) -> str:
    """Return the URL of the console's page with this query; empty if MLflow's server
    does not have the console.
    """
    with suppress(OnnxserveError), registry_errors("the console"):
        if app_answer(_CONSOLE_FILE, "", "GET", {}, timeout=_CONSOLE_SECONDS).ok:
            workspace = active_workspace()
            if workspace:
                query["workspace"] = workspace
            return f"{registry_address().rstrip('/')}/onnxserve?{urlencode(query)}"
    return ""
