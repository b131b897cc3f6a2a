"""The settings of the platforms that run a container with a model, and the routes that
each platform calls.

- Vertex AI sets `AIP_HTTP_PORT` (8080), `AIP_PREDICT_ROUTE` and `AIP_STORAGE_URI`, the
  model. It also calls `/ping`.
- Azure ML has the model in `AZUREML_MODEL_DIR`. On port 5001, it calls `/score`, and
  for the liveness `/` or the route of the deployment.
- Cloud Run and Knative set `K_SERVICE` and `PORT` (8080). They call all routes; the
  model is in the image.
- SageMaker sets `SAGEMAKER_BIND_TO_PORT` (8080), or has the model in /opt/ml/model. It
  calls `/ping` and `/invocations`.
- KServe is recognised by `KUBERNETES_SERVICE_HOST` and the model in /mnt/models. On
  port 8080, it calls the routes of V2.

The model of an image is also in /opt/ml/model, but a model that the platform specifies
takes precedence.
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements,
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html,
https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container,
https://cloud.google.com/run/docs/container-contract, https://kserve.github.io/website
(storage initializer)

`onnxserve health [URL]` checks the health of the server in a container.
"""

import http.client
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from mlflow_deploy_plugin.core.errors import InvalidConfig

SAGEMAKER_MODEL = Path("/opt/ml/model")
KSERVE_MODEL = Path("/mnt/models")
_ROUTE = re.compile(r"/[!-~]{0,512}")
_AZURE_PORT = 5001
_DEFAULT_PORT = 8080
_MLMODEL = "MLmodel"


@dataclass(frozen=True)
class Cloud:
    """The settings from the platform. An empty value or None means that the platform
    does not specify the setting.

    Vertex AI's `health_route` and `predict_route` take precedence over onnxserve's
    routes with the same path.
    """

    port: int | None = None
    model_uri: str = ""
    health_route: str = ""
    predict_route: str = ""

    @cached_property
    def paths(self) -> frozenset[str]:
        return frozenset({self.health_route, self.predict_route} - {""})


def read_cloud(
    environment: Mapping[str, str] = os.environ,
    folders: tuple[Path, Path] = (SAGEMAKER_MODEL, KSERVE_MODEL),
) -> Cloud:
    """Return the settings that the platform specifies. Raises InvalidConfig if a port
    or a route is malformed.
    """
    sagemaker, kserve = folders
    local_model = str(sagemaker) if (sagemaker / _MLMODEL).exists() else ""
    if "KUBERNETES_SERVICE_HOST" in environment and (kserve / _MLMODEL).exists():
        local_model = str(kserve)
    if "AIP_HTTP_PORT" in environment or "AIP_PREDICT_ROUTE" in environment:
        return Cloud(
            port=_read_port(environment, "AIP_HTTP_PORT"),
            model_uri=environment.get("AIP_STORAGE_URI") or local_model,
            health_route=_read_route(environment, "AIP_HEALTH_ROUTE"),
            predict_route=_read_route(environment, "AIP_PREDICT_ROUTE"),
        )
    if "AZUREML_MODEL_DIR" in environment:
        folder = Path(environment["AZUREML_MODEL_DIR"])
        # Azure copies the registered folder into the specified folder.
        if not (folder / _MLMODEL).exists():
            models = list(folder.glob(f"*/{_MLMODEL}"))
            folder = models[0].parent if len(models) == 1 else Path(local_model or folder)
        return Cloud(_AZURE_PORT, str(folder))
    if "K_SERVICE" in environment:
        return Cloud(_read_port(environment, "PORT"), local_model)
    is_sagemaker = "SAGEMAKER_BIND_TO_PORT" in environment
    if local_model or is_sagemaker:
        variable = "SAGEMAKER_BIND_TO_PORT" if is_sagemaker else "ONNXSERVE_PORT"
        return Cloud(_read_port(environment, variable), local_model or str(sagemaker))
    return Cloud()


def _read_port(environment: Mapping[str, str], name: str) -> int:
    """Return the port in a variable, by default 8080. Raises InvalidConfig if it is not
    a port.
    """
    text = environment.get(name) or str(_DEFAULT_PORT)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535):
        raise InvalidConfig(f"{name} is {text[:40]!r}; a port from 1 to 65535 is expected")
    return int(text)


def _read_route(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if text and not _ROUTE.fullmatch(text):
        raise InvalidConfig(f"{name} is {text[:100]!r}; a path that begins with / is expected")
    return text


def is_healthy(
    url: str = "",
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Return True if the server at `url` (default: in this container) answers `/ping`
    with 200 within four seconds.
    """
    if not url:
        port = read_cloud(environment).port or int(environment.get("ONNXSERVE_PORT", _DEFAULT_PORT))
        url = f"http://127.0.0.1:{port}"
    target = urlsplit(url)
    server = http.client.HTTPConnection(target.netloc, timeout=4)
    if target.scheme == "https":  # Any certificate is trusted, because the server is local.
        server = http.client.HTTPSConnection(
            target.netloc,
            timeout=4,
            context=ssl._create_unverified_context(),
        )
    try:
        server.request("GET", "/ping")
        return server.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def main(arguments: Sequence[str]) -> int:
    """Return the exit status of `onnxserve health [URL]`: 0 if the server is
    healthy.
    """
    return 0 if is_healthy("".join(arguments[:1])) else 1
