"""Tests of resolving references of a model with a real MLflow server. A proxy counts
the requests.
"""

import uuid

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.resolution import resolve
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def model(mlflow_server):
    """Register versions 1 (Production, @old, team a), 2 (Production, team b), 3
    (Staging, @new, team a), 4.
    """
    name = f"many-{uuid.uuid4().hex}"
    client = MlflowClient(mlflow_server.url)
    client.create_registered_model(name)
    for _ in range(4):
        client.create_model_version(name, "s3://bucket/model")
    for version, stage in (("1", "Production"), ("2", "Production"), ("3", "Staging")):
        client.transition_model_version_stage(name, version, stage)
    for alias, version in (("old", "1"), ("new", "3")):
        client.set_registered_model_alias(name, alias, version)
    for version, team in (("1", "a"), ("2", "b"), ("3", "a")):
        client.set_model_version_tag(name, version, "team", team)
    return name


@pytest.fixture
def proxy(mlflow_server):
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        yield proxy


@pytest.mark.parametrize(
    ("selector", "version"),
    [
        ("/Production", "2"),
        ("/Staging", "3"),
        ("@old", "1"),
        ("@new", "3"),
        ("/tag:team=a", "3"),
        ("/tag:team=b", "2"),
    ],
)
def test_each_reference_costs_one_call(proxy, model, selector, version):
    assert resolve(f"models:/{model}{selector}").version == version
    assert len(proxy.asked) == 1, proxy.asked


def test_no_look_reads_all_versions_of_a_model(proxy, model):
    for selector in ("/latest", "/tag:team=a", "/Production"):
        resolve(f"models:/{model}{selector}")
    for selector in ("/tag:team=none", "@dead"):
        with pytest.raises(NotFound):
            resolve(f"models:/{model}{selector}")
    searches = [request for request in proxy.asked if "model-versions/search" in request]
    assert searches
    assert all(
        "max_results=1&" in request or "max_results=10&" in request for request in searches
    ), searches


def test_a_version_without_an_evaluation_has_passed_as_long_as_the_policy_names_no_rows(
    proxy, model
):
    client = MlflowClient(proxy.url)
    for key, value in (
        ("onnxserve.gate", "passed without an evaluation"),
        ("onnxserve.gate.digest", "ab12"),
    ):
        client.set_model_version_tag(model, "2", key, value)
    for policy, is_passed in (
        ("gated_stages: [Production]", True),
        ("evaluation: {dataset: rows.csv, target: y}", False),
    ):
        client.set_registered_model_tag(model, "onnxserve.gate.policy", policy)
        resolved = resolve(f"models:/{model}/Production")
        assert resolved.gate_status.passed is is_passed
        assert ("onnxserve gate" in resolved.gate_status.reason) is not is_passed


def test_a_later_verdict_on_a_version_without_an_evaluation_is_seen(proxy, model):
    client = MlflowClient(proxy.url)
    client.set_registered_model_tag(model, "onnxserve.gate.policy", "gated_stages: [Production]")
    client.set_model_version_tag(model, "1", "onnxserve.gate.digest", "ab12")
    for state in ("passed without an evaluation", "passed"):
        client.set_model_version_tag(model, "1", "onnxserve.gate", state)
        assert resolve(f"models:/{model}@old").gate_status.state == state


@pytest.mark.parametrize(("selector", "error"), [("@dead", NotFound), ("/champion", InvalidConfig)])
def test_a_reference_without_a_version_is_an_error(proxy, model, selector, error):
    with pytest.raises(error):
        resolve(f"models:/{model}{selector}")


@pytest.mark.parametrize(
    ("mood", "status"), [("<html>hello</html>", 200), ("[1]", 200), ("oops", 500), ("refuse", 200)]
)
def test_nonsense_from_the_registry_is_reported_after_one_request(proxy, model, mood, status):
    proxy.turn(mood, status=status)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for selector in ("/Production", "@new", "/tag:team=a"):
            proxy.asked.clear()
            with pytest.raises(RegistryUnavailable):
                resolve(f"models:/{model}{selector}")
            assert len(proxy.asked) == 1
