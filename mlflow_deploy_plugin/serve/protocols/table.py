"""The prediction protocols over HTTP. The order is the order of their routes in the
OpenAPI document.
"""

from mlflow_deploy_plugin.serve.protocols.clouds import AZURE, VERTEX
from mlflow_deploy_plugin.serve.protocols.invocations import INVOCATIONS
from mlflow_deploy_plugin.serve.protocols.predict import PREDICT, PREDICT_BATCH
from mlflow_deploy_plugin.serve.protocols.tfserving import TFSERVING
from mlflow_deploy_plugin.serve.protocols.v2 import V2

PROTOCOLS = (
    INVOCATIONS,
    PREDICT,
    PREDICT_BATCH,
    AZURE,
    VERTEX,
    V2,
    TFSERVING,
)
