"""The clouds that run a container with a model, and their environment variables, which are read once at start.

| cloud | recognised by | port | routes |
|---|---|---|---|
| Vertex AI | `AIP_HTTP_PORT`, `AIP_HEALTH_ROUTE`, `AIP_PREDICT_ROUTE`, `AIP_STORAGE_URI` | as given (8080) | as given |
| SageMaker | a model in /opt/ml/model, `SAGEMAKER_BIND_TO_PORT` | as given (8080) | `/ping`, `/invocations` |
| Azure ML | `AZUREML_MODEL_DIR` | 5001 | `/score`; liveness and readiness as the deployment has them |

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements,
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html,
https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidConfig

_ROUTE = re.compile(r"/[!-~]{0,512}")
_AZURE_PORT = 5001
_SAGEMAKER_MODEL = Path("/opt/ml/model")
_MLMODEL = "MLmodel"


@dataclass(frozen=True)
class Cloud:
    """The settings from the cloud; empty outside of one.

    Attributes:
        port: the port that the cloud sends requests to, if it names one.
        model_uri: the model to serve if the command line names none; empty if the cloud names none either.
        health_route / predict_route: Vertex AI's; empty elsewhere. They win over a route of ours at the same path.
    """

    port: int | None = None
    model_uri: str = ""
    health_route: str = ""
    predict_route: str = ""

    @cached_property
    def paths(self) -> frozenset[str]:
        """The routes that the cloud names."""
        return frozenset({self.health_route, self.predict_route} - {""})


def read_cloud(environment: Mapping[str, str] = os.environ, sagemaker_model: Path = _SAGEMAKER_MODEL) -> Cloud:
    """Read the environment, and look for the folder that SageMaker unpacks its model into.

    Raises:
        InvalidConfig: a port or a route is malformed; the message names the variable.
    """
    if "AIP_HTTP_PORT" in environment or "AIP_PREDICT_ROUTE" in environment:
        return Cloud(
            _port(environment, "AIP_HTTP_PORT", 8080),
            environment.get("AIP_STORAGE_URI", ""),
            _route(environment, "AIP_HEALTH_ROUTE"),
            _route(environment, "AIP_PREDICT_ROUTE"),
        )
    if "AZUREML_MODEL_DIR" in environment:
        folder = Path(environment["AZUREML_MODEL_DIR"])
        inner = list(folder.glob(f"*/{_MLMODEL}"))  # Azure puts the registered folder into the folder that it names
        is_nested = len(inner) == 1 and not (folder / _MLMODEL).exists()
        return Cloud(_AZURE_PORT, str(inner[0].parent if is_nested else folder))
    if "SAGEMAKER_BIND_TO_PORT" in environment or (sagemaker_model / _MLMODEL).exists():
        return Cloud(_port(environment, "SAGEMAKER_BIND_TO_PORT", 8080), str(sagemaker_model))
    return Cloud()


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535):
        raise InvalidConfig(f"{name} is {text[:40]!r}; a port from 1 to 65535 is expected")
    return int(text)


def _route(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if text and not _ROUTE.fullmatch(text):
        raise InvalidConfig(f"{name} is {text[:100]!r}; a path that begins with / is expected")
    return text
