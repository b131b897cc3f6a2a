"""Triton's repository, statistics and configuration documents, from a server in this
process.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest, NotFound
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.inference import management
from mlflow_deploy_plugin.serve.observability.metrics import Statistics
from mlflow_deploy_plugin.serve.runtime.batcher import Batcher, BatchPolicy
from tests.support import servers
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    single = model_folders["single"]
    endpoints = {
        "mixed": {"v": servers.variant(model_folders["mixed"], "7")},
        "two": {
            "a": servers.variant(single),
            "b": servers.variant(single, "m-2", weight=0),
        },
        "broken": {"v": servers.variant(single.parent / "nothing", "1")},
    }
    with servers.opened(tmp_path_factory.mktemp("management") / "state", endpoints) as server:
        yield server


def test_index_lists_versions_and_failures(server):
    wait_until(lambda: "broken" in server.repository.table, what="the last endpoint")
    ready = [
        {"name": name, "version": version, "state": "READY", "reason": ""}
        for name, version in (("mixed", "7"), ("two", "1"), ("two", "m-2"))
    ]
    assert management.repository_index(server.repository, only_ready=True) == ready
    *entries, broken = management.repository_index(server.repository)
    assert entries == ready
    assert (broken["name"], broken["state"]) == ("broken", "UNAVAILABLE")
    assert "no MLmodel file" in broken["reason"]


@pytest.mark.parametrize(("body", "ready"), [(b"", False), (b'{"ready":null}', False)])
def test_index_request_may_be_empty(body, ready):
    assert management.decode_index(body) is ready
    assert management.decode_index(b'{"ready": true}')


def test_load_may_define_the_endpoint():
    assert management.endpoint_to_load("e", management.decode_parameters(b"")) is None
    by_uri = management.endpoint_to_load("e", {"model_uri": "models:/m/3"})
    assert by_uri is not None
    assert by_uri.variants["e"].model == "models:/m/3"
    by_config = management.endpoint_to_load("e", {"config": "name: e\nvariants: {v: {model: x}}\n"})
    assert by_config is not None
    assert list(by_config.variants) == ["v"]


@pytest.mark.parametrize(
    "config",
    [
        "",
        "name: e",
        "name: e\nvariants: {v: {model: x}}\n---\nname: f\nvariants: {v: {model: x}}",
        "name: e\nvariants: {v: {model: x}}\ncapture: {sinks: {a: {url: 'http://h'}}}",
        # A caller may not send code.
        'name: e\nvariants: {v: {model: x}}\nserve: {steps: "def before(request): ...\\n"}',
        "\x00",
    ],
)
def test_invalid_endpoint_config_is_refused(config):
    with pytest.raises(InvalidConfig) as caught:
        management.endpoint_to_load("e", {"config": config})
    assert "\n" not in caught.value.message


def test_triton_configuration_is_refused_by_name():
    with pytest.raises(InvalidConfig, match=r"ModelConfig.*unknown field 'backend'"):
        management.endpoint_to_load("e", {"config": '{"backend": "onnxruntime"}'})


def test_unload_accepts_triton_parameters():
    management.check_unload_parameters({"unload_dependents": False})
    with pytest.raises(InvalidRequest, match=r"'x' .*unload"):
        management.check_unload_parameters({"x": 1})


def test_statistics_are_per_loaded_version(server):
    counted = {
        ("two", "m", "1"): Statistics(5, 1, 0.5, 40, 2, 0.1, 0.2, 1.5),
        ("two", "m", "gone"): Statistics(requests=1),
    }
    server = replace(server, metrics=SimpleNamespace(statistics=lambda: counted))  # type: ignore[arg-type]
    first, second = management.model_statistics(server, "two")["model_stats"]
    totals = {"inference_count": 40, "execution_count": 2, "last_inference": 1500}
    assert first.items() >= {"name": "two", "version": "1", **totals}.items()
    parts = {"success": 500, "queue": 100, "compute_infer": 200}
    for part, milliseconds in parts.items():
        assert first["inference_stats"][part] == {"count": 4, "ns": milliseconds * 1_000_000}
    assert first["inference_stats"]["fail"] == {"count": 1, "ns": 0}
    assert (second["version"], second["inference_count"]) == ("m-2", 0)
    assert management.model_statistics(server, "two", "1") == {"model_stats": [first]}
    assert len(management.model_statistics(server)["model_stats"]) == 3
    for endpoint, version in (("nobody", None), ("two", "9")):
        with pytest.raises(NotFound):
            management.model_statistics(server, endpoint, version)


def test_unbatched_configuration_has_batch_dims(server):
    config = management.triton_config(
        server.repository.select_variant("mixed"), ("7",), ServerSpec(workers=3)
    )
    types = ["TYPE_STRING", "TYPE_FP64", "TYPE_INT64", "TYPE_BOOL"]
    assert [entry["data_type"] for entry in config.pop("input")] == types
    assert config.pop("output")[1] == {
        "name": "probabilities",
        "data_type": "TYPE_FP32",
        "dims": [-1, 2],
    }
    assert "dynamic_batching" not in config
    assert (
        config.items()
        >= {
            "name": "mixed",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 0,
            "default_model_filename": "model.onnx",
        }.items()
    )
    assert config["instance_group"] == [{"name": "mixed", "kind": "KIND_CPU", "count": 3}]
    assert config["version_policy"] == {"specific": {"versions": [7]}}


def test_batched_configuration_has_no_batch_dims(server):
    variant = server.repository.select_variant("mixed")
    policy = BatchPolicy(8, (4,), 100, max_queue_size=16)
    batcher = Batcher(variant.loaded.predictor.run, policy)
    joined = replace(variant, loaded=replace(variant.loaded, batcher=batcher))
    config = management.triton_config(joined, ("7",), ServerSpec(default_timeout_microseconds=9))
    assert config["max_batch_size"] == 8
    assert config["input"][0] == {"name": "carrier", "data_type": "TYPE_STRING", "dims": [1]}
    scalar = {"data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}}
    assert config["output"][0] == {"name": "label", **scalar}
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": 100,
        "default_queue_policy": {"default_timeout_microseconds": 9, "max_queue_size": 16},
    }


def test_version_policy_without_numbers_is_latest(server):
    versions = server.repository.versions("two")
    config = management.triton_config(
        server.repository.select_variant("two", "m-2"), versions, ServerSpec()
    )
    assert config["version_policy"] == {"latest": {"num_versions": 2}}
