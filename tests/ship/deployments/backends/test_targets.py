"""Tests of targets: their URIs, and the errors for unusable targets."""

import sys

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.ship.deployments.backends.targets import LOCAL, Target, parse_target
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("onnxserve", LOCAL),
        ("onnxserve:/", LOCAL),
        ("onnxserve:/docker", Target("docker")),
        ("onnxserve:/docker/", Target("docker")),
        ("onnxserve:/kubernetes/ml", Target("kubernetes", "ml")),
    ],
)
def test_uri_and_target_round_trip(uri, target):
    assert parse_target(uri) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "uri",
    [
        "onnxserve:/podman",
        "onnxserve://docker",
        "onnxserve:/kubernetes",
        "onnxserve:/kubernetes/Of_Ada",
    ],
)
def test_unknown_target_is_refused(uri):
    with refused(
        InvalidConfig, "onnxserve", "onnxserve:/docker", "onnxserve:/kubernetes/NAMESPACE"
    ):
        parse_target(uri)


def test_missing_sdk_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    monkeypatch.delitem(
        sys.modules, "mlflow_deploy_plugin.ship.deployments.backends.docker", raising=False
    )

    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[docker\]'"):
        Target("docker").backend(Settings())
