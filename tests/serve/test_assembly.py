"""The server of a state folder is created from its spec."""

import json

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import SPEC
from mlflow_deploy_plugin.serve.assembly import open_server, read_specs
from mlflow_deploy_plugin.serve.inference.pipeline import may_wait_for_limits
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.bodies import v2_tensor
from tests.support.handling import ask
from tests.support.servers import one_endpoint

ENDPOINT = (
    "name: {name}\nvariants: {{main: {{model: models:/m/1}}}}\nserver: {{threads: {threads}}}\n"
)


def test_missing_spec_has_no_endpoints(tmp_path):
    assert read_specs(tmp_path) == []


def test_first_endpoint_defines_the_server(tmp_path):
    documents = ENDPOINT.format(name="a", threads=3), ENDPOINT.format(name="b", threads=3)
    (tmp_path / SPEC).write_text("---\n".join(documents))
    assert {spec.server.threads for spec in read_specs(tmp_path)} == {3}


def test_malformed_spec_is_refused(tmp_path):
    (tmp_path / SPEC).write_text("name: [")
    with pytest.raises(InvalidConfig):
        read_specs(tmp_path)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("settings", "may_wait"),
    [
        ("{}", False),
        ("{api_keys: true}", True),
        ("{rate_limit: 1/day}", True),
        ("{max_concurrent_requests: 1}", False),
    ],
)
def test_event_loop_never_waits_for_redis(tmp_path, redis_url, monkeypatch, settings, may_wait):
    """Not even the first request of a key waits, although its limits are not known
    before.
    """
    (tmp_path / SPEC).write_text(f"name: e\nvariants: {{e: {{model: m}}}}\nserver: {settings}\n")
    for url, expected in ((redis_url, may_wait), ("", False)):
        monkeypatch.setenv("ONNXSERVE_REDIS_URL", url)
        server = open_server(tmp_path)
        server.close()
        assert may_wait_for_limits(server, RawRequest("POST", "/invocations", {}, b"")) is expected


def test_closing_removes_file_and_models(tmp_path):
    server = open_server(tmp_path)
    server.close()
    assert not list((tmp_path / "workers").glob("*.json"))
    assert server.repository.table == {}


def test_characters_of_texts_are_limited(serve_here, tmp_path):
    pytest.importorskip("tokenizers")
    from tests.support.texts import text_model

    server = serve_here(one_endpoint(text_model(tmp_path / "model")), {"max_text_characters": 1000})
    # Only the starts count.
    assert ask(server, body={"inputs": ["the model " * 10_000] * 3}).status == 200
    refused = ask(server, body={"inputs": ["日本語" * 200] * 2})
    assert refused.status == 413
    assert "max_text_characters" in json.loads(refused.body)["message"]
    late = {"inputs": [v2_tensor("text", "BYTES", ["a"])], "parameters": {"timeout": 1}}
    assert ask(server, "/v2/models/e/infer", body=late).status == 504
