"""Tests of resolving several references of a model with a real MLflow server. A proxy counts the requests."""

import uuid
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.registry.resolution import Resolution, ResolvedModel, resolve, resolve_all
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.proxy import Proxy, proxy_to
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def model(mlflow_server: MlflowServer) -> str:
    """Register versions 1 (Production, @old, team a), 2 (Production, team b), 3 (Staging, @new, team a), 4."""
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
def proxy(mlflow_server: MlflowServer) -> Iterator[Proxy]:
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        yield proxy


def versions(answers: dict[str, Resolution]) -> list[str]:
    assert all(isinstance(answer, ResolvedModel) for answer in answers.values()), answers
    return [answer.version for answer in answers.values() if isinstance(answer, ResolvedModel)]


@pytest.mark.parametrize(
    ("selectors", "found"),
    [
        (["/Production"], ["2"]),
        (["@old"], ["1"]),
        (["/tag:team=a"], ["3"]),
        (["/Production", "/Staging"], ["2", "3"]),
        (["/Production", "/tag:team=a", "/tag:team=b"], ["2", "3", "2"]),
        (["/Production", "/Staging", "@new"], ["2", "3", "3"]),
        (["/Production", "@old", "@new"], ["2", "1", "3"]),
        (["@new", "/tag:team=b"], ["3", "2"]),
    ],
)
def test_each_reference_costs_one_call(proxy: Proxy, model: str, selectors: list[str], found: list[str]) -> None:
    uris = [f"models:/{model}{selector}" for selector in selectors]
    answers = resolve_all(uris)
    assert versions(answers) == found
    assert len(proxy.asked) == len(uris), proxy.asked
    for uri, answer in answers.items():
        assert answer == resolve_all([uri])[uri]


def test_no_look_reads_all_versions_of_a_model(proxy: Proxy, model: str) -> None:
    selectors = ("/latest", "/tag:team=a", "/tag:team=none", "/Production", "@dead")
    resolve_all([f"models:/{model}{selector}" for selector in selectors])
    searches = [asked for asked in proxy.asked if "model-versions/search" in asked]
    assert searches
    assert all("max_results=1&" in asked or "max_results=10&" in asked for asked in searches), searches


def test_a_version_without_an_evaluation_has_passed_as_long_as_the_policy_names_no_rows(
    proxy: Proxy, model: str
) -> None:
    client, uris = MlflowClient(proxy.url), [f"models:/{model}/Production", f"models:/{model}@new"]
    for key, value in (("onnxserve.gate", "passed without an evaluation"), ("onnxserve.gate.digest", "ab12")):
        client.set_model_version_tag(model, "2", key, value)
    for policy, is_passed in (
        ("gated_stages: [Production]", True),
        ("evaluation: {dataset: rows.csv, target: y}", False),
    ):
        client.set_registered_model_tag(model, "onnxserve.gate.policy", policy)
        for found in (resolve(uris[0]), resolve_all(uris)[uris[0]]):
            assert isinstance(found, ResolvedModel)
            assert found.gate_status.passed is is_passed
            assert ("onnxserve gate" in found.gate_status.reason) is not is_passed


def test_a_later_verdict_on_a_version_without_an_evaluation_is_seen(proxy: Proxy, model: str) -> None:
    client = MlflowClient(proxy.url)
    uris = [f"models:/{model}/Production", f"models:/{model}@old"]
    client.set_registered_model_tag(model, "onnxserve.gate.policy", "gated_stages: [Production]")
    client.set_model_version_tag(model, "1", "onnxserve.gate.digest", "ab12")
    for state in ("passed without an evaluation", "passed"):
        client.set_model_version_tag(model, "1", "onnxserve.gate", state)
        found = resolve_all(uris)[uris[1]]
        assert isinstance(found, ResolvedModel)
        assert found.gate_status.state == state


def test_one_that_is_not_there_takes_no_other_along(proxy: Proxy, model: str) -> None:
    good, absent, wrong = f"models:/{model}/Production", f"models:/{model}@dead", f"models:/{model}/champion"
    answers = resolve_all([good, absent, wrong, "models:/"])
    assert isinstance(answers[good], ResolvedModel)
    assert isinstance(answers[absent], NotFound)
    assert isinstance(answers[wrong], InvalidConfig)
    assert isinstance(answers["models:/"], InvalidConfig)


@pytest.mark.parametrize(
    ("mood", "status"), [("<html>hello</html>", 200), ("[1]", 200), ("oops", 500), ("refuse", 200)]
)
def test_a_registry_that_talks_nonsense_is_said_to(proxy: Proxy, model: str, mood: str, status: int) -> None:
    proxy.turn(mood, status=status)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        uris = [f"models:/{model}{selector}" for selector in ("/Production", "@new", "/tag:team=a")]
        for asked in (uris, uris[:1], uris[1:2], uris[2:]):
            proxy.asked.clear()
            answers = resolve_all(asked)
            assert len(proxy.asked) == 1
            assert {type(answer) for answer in answers.values()} == {RegistryUnavailable}, answers
