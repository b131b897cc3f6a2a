"""MLflow of SageMaker as tracking server and registry, as its plugin calls it."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, RegistryRefused
from mlflow_deploy_plugin.core.registry.connection import refuse_folder
from mlflow_deploy_plugin.core.registry.resolution import resolve
from tests.support.refusals import refused
from tests.support.services.sagemaker import APP, NEEDS_PLUGIN, SERVER, register_plugin, sagemaker
from tests.support.tracking import tracking_at

pytestmark = [pytest.mark.long, NEEDS_PLUGIN]


@pytest.fixture(params=[SERVER, APP], ids=["server", "app"])
def service(request, mlflow_server, monkeypatch):
    register_plugin(monkeypatch)
    arn = request.param
    with sagemaker(mlflow_server.url, arn, monkeypatch) as service, tracking_at(arn):
        yield service


@pytest.mark.parametrize(
    ("refusal", "secret"),
    [
        ("User: arn:aws:iam::1:user/ci is not authorized", "s3cret"),
        ("The security token included in the request is expired", "s3cret"),
        ("The request signature we calculated does not match", "s3cret"),
        ("", ""),
    ],
)
def test_sagemaker_refusal_has_a_remedy(service, tmp_path, monkeypatch, refusal, secret):
    service.refusal = refusal
    monkeypatch.setenv("HOME", str(tmp_path))  # It has no profile of AWS.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    remedy = "AWS_SECRET_ACCESS_KEY"
    if "authorized" in refusal:
        remedy = "sagemaker:CallMlflowAppApi" if service.arn == APP else "sagemaker-mlflow:*"
    with refused(RegistryRefused, refusal, remedy) as caught:
        resolve("models:/x@champion")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_folder_that_sagemaker_names_is_refused(service):
    with refused(InvalidConfig, "/etc"):
        refuse_folder("file:///etc")
