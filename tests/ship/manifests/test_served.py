"""Tests of the spec that a server reads from its manifests, and of the files that it
needs from this machine.
"""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec, load_specs, new_endpoint
from mlflow_deploy_plugin.ship.manifests.served import dump_documents, local_files, served_spec
from tests.support.refusals import refused

CONFIG = {
    "monitors.daily.kind": "drift",
    "alarms.false_per_year": "1",
    "container.cpus": "2",
    "kubernetes.replicas": "5",
    "capture.fraction": "0.5",
    "server.host": "10.0.0.7",
}


def test_served_spec_omits_settings_of_its_surroundings():
    endpoint = new_endpoint("flights", "models:/flight-delay/3", CONFIG)
    (served,) = load_specs(dump_spec(served_spec(endpoint)))
    assert served.model_fields_set == {"api_version", "name", "variants", "server", "capture"}
    assert served.variants == endpoint.variants
    assert served.capture == endpoint.capture
    assert (served.server.host, served.server.port, served.server.insecure) == (
        "0.0.0.0",
        8080,
        True,
    )


def test_spec_decides_access_outside_a_container():
    endpoint = new_endpoint("flights", "models:/flight-delay/3", CONFIG)
    assert not served_spec(endpoint, endpoint.server.host).server.insecure
    with_keys = new_endpoint(
        "flights", "models:/flight-delay/3", {**CONFIG, "server.api_keys": "true"}
    )
    assert not served_spec(with_keys).server.insecure


def test_model_folders_and_certificates_are_local_files():
    tls = {"server.certfile": "/etc/tls.pem", "server.keyfile": "/etc/tls.key"}
    assert local_files(new_endpoint("a", "file:///srv/a%20model", tls)) == [
        "/srv/a model",
        "/etc/tls.pem",
        "/etc/tls.key",
    ]
    assert local_files(new_endpoint("a", "s3://bucket/model")) == []
    signed = {"require": "signature=/etc/release.pub"}
    assert local_files(new_endpoint("a", "s3://bucket/model", signed)) == ["/etc/release.pub"]
    with refused(InvalidConfig, "server.keyfile", "absolute path", "'tls.key'"):
        local_files(new_endpoint("a", "/srv/a", {**tls, "server.keyfile": "tls.key"}))


def test_documents_are_readable():
    twice = {"a": "b"}
    text = dump_documents(
        [{"spec": "name: a\nvariants: {}\n", "one": twice, "two": twice}, {"later": 1}]
    )
    assert text.splitlines() == [
        "spec: |",
        "  name: a",
        "  variants: {}",
        "one:",
        "  a: b",
        "two:",
        "  a: b",
        "---",
        "later: 1",
    ]


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_round_trips(text):
    assert yaml.safe_load(dump_documents([{"a": text}])) == {"a": text}
