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


@pytest.fixture
def server(serve_here, model_folders):
    return serve_here(
        {
            "mixed": {"v": servers.variant(model_folders["mixed"], "7")},
            "two": {
                "a": servers.variant(model_folders["single"]),
                "b": servers.variant(model_folders["single"], "m-2", weight=0),
            },
            "broken": {"v": servers.variant(model_folders["single"].parent / "nothing", "1")},
        }
    )


def test_the_index_has_every_version_and_why_there_is_none(server):
    wait_until(lambda: "broken" in server.repository.table, what="the last endpoint")
    ready = [
        {"name": "mixed", "version": "7", "state": "READY", "reason": ""},
        {"name": "two", "version": "1", "state": "READY", "reason": ""},
        {"name": "two", "version": "m-2", "state": "READY", "reason": ""},
    ]
    assert management.repository_index(server.repository, only_ready=True) == ready
    *entries, broken = management.repository_index(server.repository)
    assert entries == ready
    assert broken["name"] == "broken"
    assert broken["state"] == "UNAVAILABLE"
    assert "no MLmodel file" in broken["reason"]


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", False), (b"{}", False), (b'{"ready":null}', False)]
)
def test_an_index_request_may_be_empty(body, ready):
    assert management.decode_index(body) is ready
    assert management.decode_index(b'{"ready": true}')


def test_a_load_may_define_the_endpoint():
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
        "\x00",
    ],
)
def test_an_invalid_endpoint_config_is_refused_in_one_line(config):
    with pytest.raises(InvalidConfig) as caught:
        management.endpoint_to_load("e", {"config": config})
    assert "\n" not in caught.value.message


def test_tritons_own_configuration_is_refused_by_its_name():
    with pytest.raises(InvalidConfig, match=r"ModelConfig.*name: Field"):
        management.endpoint_to_load(
            "e", {"config": '{"backend": "onnxruntime", "max_batch_size": 8}'}
        )


def test_an_unload_accepts_the_parameters_of_tritons_client():
    management.check_unload_parameters({"unload_dependents": False})
    with pytest.raises(InvalidRequest, match=r"'x' .*unload"):
        management.check_unload_parameters({"x": 1})


def test_statistics_are_those_of_each_version_in_memory(server):
    counted = {
        ("two", "m", "1"): Statistics(
            requests=5,
            failures=1,
            request_seconds=0.5,
            rows=40,
            batches=2,
            queue_seconds=0.1,
            compute_seconds=0.2,
            last_request=1.5,
        ),
        ("two", "m", "gone"): Statistics(requests=1),
    }
    server = replace(server, metrics=SimpleNamespace(statistics=lambda: counted))  # type: ignore[arg-type]
    first, second = management.model_statistics(server, "two")["model_stats"]
    assert first["name"] == "two"
    assert first["version"] == "1"
    assert first["inference_count"] == 40
    assert first["execution_count"] == 2
    assert first["last_inference"] == 1500
    assert first["inference_stats"]["success"] == {"count": 4, "ns": 500_000_000}
    assert first["inference_stats"]["fail"] == {"count": 1, "ns": 0}
    assert first["inference_stats"]["queue"] == {"count": 4, "ns": 100_000_000}
    assert first["inference_stats"]["compute_infer"] == {"count": 4, "ns": 200_000_000}
    assert second["version"] == "m-2"
    assert second["inference_count"] == 0
    assert management.model_statistics(server, "two", "1") == {"model_stats": [first]}
    assert len(management.model_statistics(server)["model_stats"]) == 3
    for endpoint, version in (("nobody", None), ("two", "9")):
        with pytest.raises(NotFound):
            management.model_statistics(server, endpoint, version)


def test_the_configuration_has_the_batch_in_its_dims_unless_requests_are_joined(server):
    config = management.triton_config(
        server.repository.select_variant("mixed"), ("7",), ServerSpec(workers=3)
    )
    assert config["name"] == "mixed"
    assert config["platform"] == "onnxruntime_onnx"
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert config["input"][0] == {"name": "carrier", "data_type": "TYPE_STRING", "dims": [-1, 1]}
    assert [entry["data_type"] for entry in config["input"]] == [
        "TYPE_STRING",
        "TYPE_FP64",
        "TYPE_INT64",
        "TYPE_BOOL",
    ]
    assert config["output"][1] == {
        "name": "probabilities",
        "data_type": "TYPE_FP32",
        "dims": [-1, 2],
    }
    assert config["instance_group"] == [{"name": "mixed", "kind": "KIND_CPU", "count": 3}]
    assert config["version_policy"] == {"specific": {"versions": [7]}}
    assert config["default_model_filename"] == "model.onnx"


def test_where_requests_are_joined_the_batch_is_left_out(server):
    variant = server.repository.select_variant("mixed")
    policy = BatchPolicy(
        8, preferred_batch_size=(4,), max_queue_delay_microseconds=100, max_queue_size=16
    )
    joined = replace(
        variant,
        loaded=replace(variant.loaded, batcher=Batcher(variant.loaded.predictor.run, policy)),
    )
    config = management.triton_config(joined, ("7",), ServerSpec(default_timeout_microseconds=9))
    assert config["max_batch_size"] == 8
    assert config["input"][0]["dims"] == [1]
    assert config["output"][0] == {
        "name": "label",
        "data_type": "TYPE_STRING",
        "dims": [1],
        "reshape": {"shape": []},
    }
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": 100,
        "default_queue_policy": {"default_timeout_microseconds": 9, "max_queue_size": 16},
    }


def test_versions_without_numbers_have_no_policy_that_names_them(server):
    versions = server.repository.versions("two")
    config = management.triton_config(
        server.repository.select_variant("two", "m-2"), versions, ServerSpec()
    )
    assert config["version_policy"] == {"latest": {"num_versions": 2}}
