"""MLflow of SageMaker: an MLflow server that needs requests with SigV4 signatures for
its ARN, in this process, and the plugin `sagemaker-mlflow`, which signs the requests.

The scope of a signature is checked, but not the signature itself, which botocore makes.
The plugin is not installed next to MLflow, because it adds a header to every request of
MLflow's client. `make install` puts it into a folder of its own.
"""

import json
import os
import sys
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from tests.support.services.listener import answering

FOLDER = Path(os.environ.get("SAGEMAKER_MLFLOW", Path(sys.prefix) / "sagemaker"))
NEEDS_PLUGIN = pytest.mark.skipif(
    not (FOLDER / "sagemaker_mlflow").is_dir(), reason=f"no sagemaker-mlflow in {FOLDER}"
)
SERVER = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/team"
APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-TEAM"
_OF_ARN = {
    SERVER: ("x-mlflow-sm-tracking-server-arn", "sagemaker-mlflow"),
    APP: ("x-sm-mlflow-app-arn", "sagemaker"),
}


@contextmanager
def sagemaker(mlflow, arn, monkeypatch):
    """Yield the service in front of the MLflow server at `mlflow`, which the
    environment names as MLflow. AWS refuses each request with the text `refusal`, if it
    is not empty.
    """
    service = SimpleNamespace(arn=arn, refusal="")
    header, signed_for = _OF_ARN[arn]

    def answer(request, body):
        refusal = service.refusal
        scope = f"/eu-west-1/{signed_for}/aws4_request"
        if request.headers[header] != arn or scope not in request.headers["Authorization"]:
            refusal = "The request signature we calculated does not match"
        if refusal:
            return 403, "application/json", json.dumps({"message": refusal})
        answer = requests.request(
            request.command,
            mlflow + request.path,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        return answer.status_code, "application/json", answer.text

    monkeypatch.setenv("MLFLOW_TRACKING_URI", arn)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    with answering(answer) as url:
        monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", url)
        yield service


def register_plugin(monkeypatch):
    """Register the plugin's stores and providers at MLflow in this process."""
    from mlflow.tracking._model_registry.utils import _get_store_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry
    from mlflow.tracking.request_auth import registry as auth
    from mlflow.tracking.request_header import registry as headers

    monkeypatch.syspath_prepend(str(FOLDER))
    for registry in (
        _get_store_registry(),
        _tracking_store_registry,
        auth._request_auth_provider_registry,
        headers._request_header_provider_registry,
    ):
        monkeypatch.setattr(registry, "_registry", copy(registry._registry))
        registry.register_entrypoints()
