"""The prediction protocols over HTTP. The order is the order of their routes in the
OpenAPI document.
"""

from importlib.metadata import entry_points

from mlflow_deploy_plugin.core.extensions import load_entry, registered_in
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.predict import PREDICT, PREDICT_BATCH
from mlflow_deploy_plugin.serve.protocols.protocol import Protocol
from mlflow_deploy_plugin.serve.protocols.v2 import V2

_INSTALLED = entry_points()
BLUEPRINTS = tuple(registered_in("onnxserve.blueprints", _INSTALLED).values())
OWN = (INVOCATIONS, PREDICT, PREDICT_BATCH, V2)
EXTENSIONS = {
    load_entry(entry, Protocol): entry
    for entry in sorted(_INSTALLED.select(group="onnxserve.protocols"))
}
"""The protocols of the rim and of other distributions, and their entry points. They are
loaded with this module, which gunicorn imports before it forks its workers.
"""
PROTOCOLS = (*OWN, *EXTENSIONS)
