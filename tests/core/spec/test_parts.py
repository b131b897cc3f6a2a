"""Tests of the errors for fields of a spec that contradict each other."""

import json

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, load_specs
from tests.support.refusals import refused
from tests.support.specs import flights


def test_sticky_header_and_key_are_exclusive():
    by_header = apply_config(flights(), {"sticky.header": "X-User-Id"})
    assert by_header.sticky is not None
    assert by_header.sticky.header == "x-user-id"
    assert load_specs(dump_spec(by_header)) == [by_header]

    by_key = apply_config(by_header, {"sticky.key": "user"})
    assert by_key.sticky is not None
    assert by_key.sticky.header is None
    assert by_key.sticky.key == "user"
    assert apply_config(by_key, {"sticky.key": ""}).sticky is None
    with pytest.raises(InvalidConfig, match="header and key"):
        apply_config(flights(), {"sticky.header": "X-User-Id", "sticky.key": "user"})


def test_gate_requirement_is_set_and_removed():
    gated = apply_config(flights(), {"require": "gate=passed"})
    assert gated.require == "gate=passed"
    assert load_specs(dump_spec(gated)) == [gated]
    assert apply_config(gated, {"require": ""}).require is None
    with pytest.raises(InvalidConfig, match=r"require: .*gate=passed"):
        apply_config(gated, {"require": "gate=maybe"})


@pytest.mark.parametrize(
    ("require", "requires_gate", "requires_name", "trusted_file"),
    [
        ("gate=passed", True, False, ""),
        ("signature=/etc/release.pem", False, False, "/etc/release.pem"),
        ("gate=passed,signature=/etc/name=true", True, False, "/etc/name=true"),
        ("name=true,signature=/etc/release.pem", False, True, "/etc/release.pem"),
        ({"signature": "/a", "name": True, "gate": "passed"}, True, True, "/a"),
    ],
)
def test_gate_and_signature_are_required_together(
    require, requires_gate, requires_name, trusted_file
):
    (spec,) = load_specs(json.dumps({**flights().model_dump(mode="json"), "require": require}))
    assert spec.requires_gate is requires_gate
    assert spec.requires_name is requires_name
    assert spec.trusted_file == trusted_file
    assert load_specs(dump_spec(spec)) == [spec]


@pytest.mark.parametrize(
    "require",
    [
        "signature",
        "signature=",
        "signature=release.pem",
        "signature=/a,gate=passed",
        "gate=passed,",
        "name=true",
    ],
)
def test_required_signature_needs_absolute_path(require):
    with pytest.raises(InvalidConfig, match=r"require: .*absolute path"):
        apply_config(flights(), {"require": require})


OPENVINO = "OpenVINOExecutionProvider"
CPU = "CPUExecutionProvider"


def test_providers_keep_order_and_options():
    text = (
        "name: x\n"
        "variants: {x: {model: m}}\n"
        "server:\n"
        "  providers:\n"
        "  - CUDAExecutionProvider: {device_id: 1}\n"
    )
    (spec,) = load_specs(f"{text}  - {CPU}")
    assert spec.server.providers == ({"CUDAExecutionProvider": {"device_id": 1}}, {CPU: {}})
    assert spec.server.is_on_nvidia
    assert load_specs(dump_spec(spec)) == [spec]
    changed = apply_config(spec, {"server.providers": f"{OPENVINO},{CPU}"})
    assert changed.server.providers == ({OPENVINO: {}}, {CPU: {}})
    assert not changed.server.is_on_nvidia
    assert apply_config(changed, {"server.providers": ""}).server.providers == ()


@pytest.mark.parametrize("text", ["openvino", f"'{OPENVINO},cpu'", "[{CPUExecutionProvider: 1}]"])
def test_invalid_provider_error_names_its_place(text):
    with pytest.raises(InvalidConfig, match=r"^server\.providers"):
        load_specs(f"name: x\nvariants: {{x: {{model: m}}}}\nserver: {{providers: {text}}}")


@pytest.mark.parametrize(
    "text",
    [
        "[{}]",
        f"[{{{OPENVINO}: {{}}, {CPU}: {{}}}}]",
        f"[{CPU}, {{{CPU}: {{a: 1}}}}]",
        f"'{CPU},{CPU}'",
    ],
)
def test_repeated_or_combined_providers_are_refused(text):
    with refused(InvalidConfig, "server", "providers"):
        load_specs(f"name: x\nvariants: {{x: {{model: m}}}}\nserver: {{providers: {text}}}")


@pytest.mark.parametrize(
    ("config", "image"),
    [
        ({}, "onnxserve:cpu"),
        ({"server.device": "cuda"}, "onnxserve:gpu"),
        ({"server.providers": "TensorrtExecutionProvider,CUDAExecutionProvider"}, "onnxserve:gpu"),
        ({"server.providers": f"CUDAExecutionProvider,{CPU}"}, "onnxserve:gpu"),
        ({"server.providers": OPENVINO, "container.image": "own:1"}, "own:1"),
        ({"server.providers": OPENVINO}, None),
    ],
)
def test_container_image_fits_providers(config, image):
    spec = apply_config(flights(), config)
    if image is None:
        with refused(InvalidConfig, "container.image"):
            spec.container.image_for(spec.server)
    else:
        assert spec.container.image_for(spec.server) == image


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"server.certfile": "/c.pem"}, "certfile and keyfile must be set together"),
        ({"server.ca_certs": "/ca.pem"}, "ca_certs requires certfile"),
        ({"server.jwt_issuer": "https://i"}, "jwt_issuer and jwt_audience must be set together"),
        ({"server.jwt_audience": "flights"}, "jwt_issuer and jwt_audience must be set together"),
        ({"server.grpc_port": "8080"}, "port and grpc_port are both 8080"),
        ({"server.metrics_port": "8080"}, "port and metrics_port are both 8080"),
        (
            {"server.grpc_port": "9100", "server.metrics_port": "9100"},
            "grpc_port and metrics_port are both 9100",
        ),
        ({"server.device_ids": "0"}, "device_ids requires a GPU, but device is cpu"),
        (
            {"server.device": "cuda", "server.providers": "CPUExecutionProvider"},
            "device and providers are both set",
        ),
        (
            {"server.device_ids": "0", "server.providers": "CUDAExecutionProvider"},
            "device_ids and providers",
        ),
        ({"server.device": "cuda", "server.device_ids": "0,0"}, "device_ids"),
        ({"server.device": "cuda", "server.device_ids": "0,1,2"}, "device_ids"),
        ({"capture.keys": "customer_id,_row"}, "'_row'"),
        ({"capture.keys": "prediction"}, "'prediction'"),
        ({"capture.keys": "output.y"}, "'output.y'"),
        (
            {"capture.drop": "carrier", "capture.mask": "carrier,hour"},
            "'carrier' is in drop and in mask",
        ),
        (
            {"kubernetes.replicas": "3", "kubernetes.max_replicas": "3"},
            "max_replicas 3 must exceed replicas 3",
        ),
        ({"kubernetes.replicas": "0", "kubernetes.max_replicas": "3"}, "which must be at least 1"),
        ({"kubernetes.tls_secret": "tls"}, "tls_secret requires `host`"),
        (
            {"kubernetes.host": "h", "kubernetes.gateway": "g", "kubernetes.tls_secret": "t"},
            "remove one of them",
        ),
        (
            {"variants.champion.weight": "0", "variants.challenger.weight": "0"},
            "no variant receives traffic",
        ),
        (
            {"variants.champion.weight": "0", "variants.challenger.shadow": "true"},
            "no variant receives traffic",
        ),
    ],
    ids=str,
)
def test_contradicting_fields_are_refused(config, said):
    with pytest.raises(InvalidConfig, match=said):
        apply_config(flights(), config)
