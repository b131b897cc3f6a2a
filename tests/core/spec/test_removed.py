"""Tests that removed fields are refused in a user's spec, and dropped from stored
specs.
"""

import logging

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec import removed
from mlflow_deploy_plugin.core.spec.document import (
    apply_config,
    load_specs,
    load_stored_specs,
    new_endpoint,
)
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import Control

SPEC = new_endpoint("flights", "models:/flights/1")
REMOVED = [
    ("server.device", "openvino", "server.providers=OpenVINOExecutionProvider"),
    (
        "server.device",
        "tensorrt",
        "server.providers=TensorrtExecutionProvider,CUDAExecutionProvider",
    ),
    ("server.io_binding", True, "server.provider_options.enable_cuda_graph"),
    ("server.provider_options.trt_fp16_enable", True, "server.providers"),
    ("server.provider_options.trt_engine_cache_path", "/engines", "server.providers"),
]
LISTED: dict[str, tuple[object, ...]] = {
    "openvino": ({"OpenVINOExecutionProvider": {}},),
    "tensorrt": ({"TensorrtExecutionProvider": {}}, {"CUDAExecutionProvider": {}}),
}
"""A removed device → the list of providers that a stored spec gets instead."""


KINDS: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"kind": "prediction_drift"}, {"columns": ["prediction", "output"]}),
    ({"kind": "prediction_drift", "columns": ["output.label"]}, {"columns": ["output.label"]}),
    ({"kind": "data_quality", "require": "missing<=0.1"}, {"require": "missing<=0.1"}),
    (
        {"kind": "data_quality", "reference": "rolling:7d", "false_alarm_rate": 0.001},
        {"reference": "rolling:7d", "false_alarm_rate": 0.002},
    ),
]
"""A monitor of a removed kind → the monitor of kind `drift` that a stored spec gets."""


def document(dotted: str, value: object) -> dict[str, object]:
    """Return a spec with this field."""
    for name in reversed(dotted.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return {"name": "flights", "variants": {"flights": {"model": "models:/flights/1"}}, **value}


@pytest.mark.parametrize(("dotted", "value", "replacement"), REMOVED)
def test_a_user_gets_the_replacement_of_a_removed_field(
    dotted: str,
    value: object,
    replacement: str,
) -> None:
    with pytest.raises(InvalidConfig, match=f"^{dotted}.* was removed: .*{replacement}"):
        load_specs(yaml.safe_dump(document(dotted, value)))
    with pytest.raises(InvalidConfig, match=f"^{dotted}.* was removed: .*{replacement}"):
        apply_config(SPEC, {dotted: str(value)})


@pytest.mark.parametrize(("dotted", "value", "replacement"), REMOVED)
def test_a_stored_spec_is_read_without_a_removed_field(
    dotted: str,
    value: object,
    replacement: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    removed._warn_once.cache_clear()
    text = yaml.safe_dump(document(dotted, value))

    with caplog.at_level(logging.WARNING):
        specs = [*load_stored_specs(text), *load_stored_specs(text)]
        control = Control.model_validate({"added": {"flights": document(dotted, value)}})

    providers = LISTED.get(str(value), ())
    expected = SPEC.model_copy(
        update={"server": SPEC.server.model_copy(update={"providers": providers})},
    )
    assert [*specs, *control.added.values()] == [expected] * 3
    (warning,) = caplog.messages
    assert f"{dotted}" in warning
    assert replacement in warning


def stored_tensorrt(**fields: object) -> ServerSpec:
    spec = document("server", {"device": "tensorrt", "workers": 2, **fields})
    (read,) = load_stored_specs(yaml.safe_dump(spec))
    return read.server


def test_a_stored_tensorrt_keeps_its_options_and_its_first_gpu() -> None:
    options = {"gpu_mem_limit": 2000000, "use_tf32": False, "enable_cuda_graph": True}
    server = stored_tensorrt(
        device_ids=[3, 1],
        provider_options={**options, "trt_fp16_enable": True, "arena_extend_strategy": None},
    )

    assert server == ServerSpec(
        workers=2,
        providers=(
            {"TensorrtExecutionProvider": {"device_id": 3}},
            {
                "CUDAExecutionProvider": {
                    "gpu_mem_limit": 2000000,
                    "use_tf32": False,
                    "device_id": 3,
                },
            },
        ),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"device_ids": 7},
        {"device_ids": {"a": 1}},
        {"provider_options": "x"},
        {"device_ids": [[]]},
    ],
)
def test_invalid_options_of_a_stored_tensorrt_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig, match=r"^server"):
        stored_tensorrt(**fields)


def test_an_unset_field_is_dropped_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert load_stored_specs(yaml.safe_dump(document("server.io_binding", False))) == [SPEC]
    assert not caplog.messages


def test_a_value_that_cannot_be_written_as_a_text_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"^server\.device: "):
        load_specs(
            f"name: flights\nvariants: {{}}\nserver: {{device: {{number: 0x1{'0' * 10_000}}}}}\n",
        )


@pytest.mark.parametrize(("monitor", "stored"), KINDS)
def test_a_monitor_of_a_removed_kind_is_refused_from_a_user_and_stored_as_drift(
    monitor: dict[str, object],
    stored: dict[str, object],
) -> None:
    kind = monitor["kind"]
    text = yaml.safe_dump(document("monitors.daily", monitor))

    with pytest.raises(InvalidConfig, match=f"^monitors.daily.kind={kind} was removed: use kind "):
        load_specs(text)
    (spec,) = load_stored_specs(text)

    assert spec.monitors["daily"] == MonitorSpec.model_validate({"kind": "drift", **stored})
