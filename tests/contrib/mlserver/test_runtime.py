"""The ClusterServingRuntime: valid for KServe's definitions, selected by existing
InferenceServices, restricted, and open to an administrator's choice.
"""

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.kserve import (
    RELEASES,
    definitions,
    inference_service,
    own_runtimes,
    predictor_pod,
    selected_runtime,
    strict_schema,
)

RESTRICTED = {
    "runAsNonRoot": True,
    "privileged": False,
    "seccompProfile": {"type": "RuntimeDefault"},
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""The fields that Pod Security `restricted` requires of a container."""


def rendered(*options):
    result = CliRunner().invoke(main, ["render", "--for", "kserve", "--runtime", *options])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.output)


def validator(definition):
    return jsonschema_rs.Draft202012Validator(
        strict_schema(definition), ignore_unknown_formats=True
    )


def service(format_name, protocol=None, version=None, **model):
    if version:
        model["modelFormat"] = {"name": format_name, "version": version}
    if protocol:
        model["protocolVersion"] = protocol
    return inference_service("iris", format_name, **model)


@pytest.mark.parametrize("release", RELEASES)
def test_servingruntime_is_valid_for_release(release):
    runtimes, services = definitions(release)
    validator(runtimes).validate(rendered())
    validator(services).validate(service("sklearn", "v2", "1"))
    wrong = rendered()
    wrong["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(jsonschema_rs.ValidationError, match="readinesProbe"):
        validator(runtimes).validate(wrong)


@pytest.mark.parametrize("version", ["1.25", "1.32"])
def test_servingruntime_pod_is_valid_for_kubernetes(version):
    pod = predictor_pod(rendered(), service("mlflow", "v2"), {"emptyDir": {}})
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    ("name", "protocol", "version", "selected"),
    [
        ("sklearn", None, None, "onnxserve"),
        ("sklearn", "v2", "0", "onnxserve"),
        ("xgboost", "v1", None, "onnxserve"),
        ("lightgbm", "v1", "4", "onnxserve"),
        ("catboost", "v2", None, "onnxserve"),
        ("mlflow", "v2", "3", "onnxserve"),
        ("onnx", "v2", None, "kserve-openvino"),
        ("tensorflow", "v1", "1", "kserve-openvino"),
        ("paddle", "v1", None, None),
        ("sklearn", "v2", "9", None),
        ("sklearn", "grpc-v1", None, None),
    ],
)
def test_servingruntime_is_selected_by_format_and_protocol(name, protocol, version, selected):
    found = selected_runtime(
        [rendered(), *own_runtimes().values()], service(name, protocol, version)
    )
    assert (found and found["metadata"]["name"]) == selected


def test_servingruntime_serves_onnx_without_other_runtimes():
    assert selected_runtime([rendered()], service("onnx", "grpc-v2")) is not None


def test_servingruntime_without_auto_select_needs_its_name():
    runtimes = [rendered("--no-auto-select"), *own_runtimes().values()]
    found = selected_runtime(runtimes, service("sklearn", "v2"))
    assert found["metadata"]["name"] == "kserve-mlserver"
    found = selected_runtime(runtimes, service("sklearn", "v2", runtime="onnxserve"))
    assert found["metadata"]["name"] == "onnxserve"


def test_servingruntime_priorities_differ_from_kserves():
    """KServe's webhook refuses an equal priority of the same format and version."""
    others = [
        (given["name"], given["version"], given["priority"])
        for runtime in own_runtimes().values()
        for given in runtime["spec"]["supportedModelFormats"]
        if given.get("autoSelect") and "priority" in given
    ]
    own = [
        (given["name"], given["version"], given.get("priority"))
        for given in rendered()["spec"]["supportedModelFormats"]
    ]
    assert len(set(own)) == len(own)
    assert not set(own) & set(others)
    priorities = {(name, priority) for name, _, priority in own}
    assert len(priorities) == len({name for name, _ in priorities})


def test_servingruntime_container_is_restricted():
    (container,) = rendered()["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["securityContext"] == RESTRICTED
    assert "ports" not in container  # Knative accepts one, which the InferenceService may declare.
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/var/lib/onnxserve", "/tmp"}
    assert all("emptyDir" in volume for volume in rendered()["spec"]["volumes"])
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == 8080


def test_servingruntime_has_configured_container():
    (container,) = rendered(
        *("-C", "container.image=registry:5000/onnxserve:2"),
        *("-C", "container.cpus=0.5", "-C", "container.memory_bytes=1073741824"),
        *("-C", "container.environment.ALLOW_PICKLE=false"),
        *("-C", 'container.environment.NOTE=a $HOME "b" {c}: #\n- d \x85\U0001f600'),
        *("-C", "container.environment.yes=1"),
    )["spec"]["containers"]
    assert container["image"] == "registry:5000/onnxserve:2"
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "1073741824"}
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment == {
        "ALLOW_PICKLE": "false",
        "ONNXSERVE_METRICS_NAMES": "mlserver",
        "NOTE": 'a $$HOME "b" {c}: #\n- d \x85\U0001f600',
        "yes": "1",
    }


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--for", "kserve", "--runtime", "-C", "server.port=1"], "server.port"),
        (["--for", "kserve", "--runtime", "-C", "container.cpus=x"], "container.cpus"),
        (["--for", "helm", "--runtime"], "helm"),
        (["--for", "kserve", "--runtime", "-n", "flights"], "--runtime"),
        (["--for", "kserve", "--no-auto-select", "models:/m/1"], "--no-auto-select"),
    ],
)
def test_servingruntime_refuses_other_options(arguments, named):
    result = CliRunner().invoke(main, ["render", *arguments])
    assert result.exit_code in (1, 2)
    assert named in result.output.splitlines()[-1]
