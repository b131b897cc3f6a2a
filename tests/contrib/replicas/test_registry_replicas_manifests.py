"""Tests of the replicas and their nginx as manifests."""

import json
from importlib.resources import files
from itertools import chain

import jsonschema_rs  # schemathesis depends on this package.
import kubernetes_validate
import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import load_specs, new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import render_files
from mlflow_deploy_plugin.ship.manifests.helm import values_schema
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.ship.manifests.test_helm import NEEDS_HELM, template
from tests.ship.manifests.test_kubernetes_objects import CUSTOM, assert_restricted
from tests.support.commands import done
from tests.support.refusals import refused

FULL = {
    "proxy.replicas": "3",
    "server.grpc_port": "9000",
    "server.metrics_port": "9100",
    "server.rate_limit": "100/minute",
    "server.max_body_bytes": "2048",
    "kubernetes.service_monitor": "true",
    "container.image": "registry.example/onnxserve:1",
}
TLS = {"server.certfile": "t/tls.crt", "server.keyfile": "t/tls.key"}


def spec(config=(), model="models:/team-*@champion"):
    return new_endpoint("registry", model, {**FULL, **dict(config)})


def rendered(config=()):
    """Return the objects by kind and name."""
    text = render_files("kubernetes", spec(config), Place("ml"))["registry.yaml"]
    documents = yaml.safe_load_all(text)
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in documents}


def pod_of(document):
    return document["spec"]["template"]["spec"]


@pytest.mark.parametrize("config", [{}, TLS], ids=["plain", "tls"])
def test_objects_are_valid_and_restricted(config):
    documents = rendered(config)
    for (kind, _), document in documents.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(document, "1.32", strict=True)
    servers = documents["StatefulSet", "registry"]
    proxy = documents["Deployment", "registry-proxy"]
    assert servers["spec"]["replicas"] == 3
    for workload in (servers, proxy):
        assert_restricted(pod_of(workload))
        labels = workload["spec"]["template"]["metadata"]["labels"].items()
        assert labels >= workload["spec"]["selector"]["matchLabels"].items()
    assert not {("Deployment", "registry"), ("StatefulSet", "registry-proxy")} & {*documents}


def test_each_replica_has_a_service():
    documents = rendered()
    of_proxy = documents["Service", "registry"]
    template = documents["Deployment", "registry-proxy"]["spec"]["template"]
    assert template["metadata"]["labels"].items() >= of_proxy["spec"]["selector"].items()
    assert [port["name"] for port in of_proxy["spec"]["ports"]] == ["http", "grpc"]
    config = documents["ConfigMap", "registry-proxy"]["data"]["nginx.conf"]
    for number in range(3):
        service = documents["Service", f"registry-{number}"]
        selector = service["spec"]["selector"]
        assert selector["statefulset.kubernetes.io/pod-name"] == f"registry-{number}"
        for port in (8080, 9000):
            assert f"server registry-{number}:{port} " in config


def test_prometheus_asks_the_replicas():
    documents = rendered()
    (monitor,) = [entry for (kind, _), entry in documents.items() if kind == "ServiceMonitor"]
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    matching = [
        name
        for (kind, name), entry in documents.items()
        if kind == "Service" and entry["metadata"]["labels"].items() >= selected
    ]
    assert matching == ["registry-0", "registry-1", "registry-2"]


def test_callers_are_counted_by_their_address():
    (served,) = load_specs(rendered()["ConfigMap", "registry"]["data"]["spec.yaml"])
    assert served.server.rate_limit_header == "x-real-ip"
    assert served.proxy is None


def test_only_nginx_reaches_replicas_that_trust_it():
    documents = rendered()
    served, metrics = documents["NetworkPolicy", "registry"]["spec"]["ingress"]
    (admitted,) = served["from"]
    labels = documents["Deployment", "registry-proxy"]["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= admitted["podSelector"]["matchLabels"].items()
    assert [port["port"] for port in served["ports"]] == ["http", "grpc"]
    assert metrics["from"] == [{"podSelector": {}}]
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]


def test_certificate_is_for_the_proxy_too():
    documents = rendered(TLS)
    config = documents["ConfigMap", "registry-proxy"]["data"]["nginx.conf"]
    assert "listen 0.0.0.0:8080 ssl;" in config
    assert "proxy_pass https://" in config
    (container,) = pod_of(documents["Deployment", "registry-proxy"])["containers"]
    (folder,) = [
        mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "tls"
    ]
    assert f"ssl_certificate {folder}/tls.crt;" in config


def test_values_have_the_objects_without_a_namespace():
    values = yaml.safe_load(render_files("helm", spec(), Place("ml"))["registry.values.yaml"])
    objects = {(entry["kind"], entry["metadata"]["name"]): entry for entry in values["objects"]}
    for name, document in rendered().items():
        del document["metadata"]["namespace"]
        assert objects[name] == document
    known = values_schema()["properties"]["objects"]
    jsonschema_rs.Draft7Validator(known).validate(values["objects"])


@NEEDS_HELM
def test_chart_prints_the_objects():
    values = yaml.safe_load(render_files("helm", spec(), Place("ml"))["registry.values.yaml"])
    printed = template(values)
    for document in values["objects"]:
        assert document in printed


def test_compose_project_is_valid():
    written = render_files("compose", spec({"proxy.image": "nginx$x"}), Place())
    document = yaml.safe_load(written["compose.yaml"])
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema_rs.validator_for(json.loads(schema.read_text())).validate(document)
    services = document["services"]
    assert [*services] == ["registry-1", "registry-2", "registry-3", "registry-proxy"]
    ports = list(chain(*(services[name]["ports"] for name in [*services][:3])))
    assert len({*ports}) == 9
    assert all(port.startswith("127.0.0.1:") for port in ports)
    states = {service["volumes"][-1]["source"] for service in [*services.values()][:3]}
    assert states == {*document["volumes"]}
    assert services["registry-proxy"]["image"] == "nginx$$x"
    proxy = services["registry-proxy"]
    assert (proxy["read_only"], proxy["cap_drop"], proxy["user"]) == (True, ["ALL"], "10001:10001")
    for number in (1, 2, 3):
        (served,) = load_specs(written[f"registry-{number}/spec.yaml"])
        assert f"server 127.0.0.1:{served.server.port} " in written["registry-proxy/nginx.conf"]


@pytest.mark.parametrize("name", ["kubernetes", "compose"])
def test_nginx_accepts_the_configuration(nginx, name):
    written = render_files(name, spec({"server.port": "18080"}), Place())
    text = written.get("registry-proxy/nginx.conf")
    if text is None:
        (text,) = [
            document["data"]["nginx.conf"]
            for document in yaml.safe_load_all(written["registry.yaml"])
            if document["metadata"]["name"] == "registry-proxy" and document["kind"] == "ConfigMap"
        ]
        # The names are those of Services.
        for number in range(3):
            text = text.replace(f"server registry-{number}:", f"server 127.0.1.{number}:")
    with nginx(text):
        pass


@pytest.mark.parametrize(
    ("name", "config", "model", "word"),
    [
        ("kubernetes", {}, "models:/flights@champion", "--registry"),
        ("kserve", {}, "models:/*@champion", "kubernetes"),
        ("keda", {}, "models:/*@champion", "kubernetes"),
        ("kubernetes", {"kubernetes.max_replicas": "9", "container.cpus": "1"}, "", "max_replicas"),
        ("kubernetes", {**TLS, "server.ca_certs": "t/ca.crt"}, "", "server.ca_certs"),
        ("compose", {"server.host": "0.0.0.0"}, "", "server.host"),
        ("compose", {"server.host": "::1;x", "server.api_keys": "true"}, "", "nginx"),
        ("compose", {"server.certfile": "/a;b.pem", "server.keyfile": "/k"}, "", "nginx"),
        ("compose", {"server.certfile": "/a.pem", "server.keyfile": "/$pid"}, "", "nginx"),
        ("compose", {"server.port": "8080", "server.grpc_port": "8090"}, "", "8090"),
        ("kubernetes", {"server.metrics_port": ""}, "", "server.metrics_port"),
    ],
)
def test_unfit_field_is_refused(name, config, model, word):
    with refused(InvalidConfig, word):
        render_files(name, spec(config, model or "models:/*@champion"), Place())


def test_command_renders_the_registry():
    arguments = "render --for kubernetes --registry @champion --only team-* --replicas 4 -n all"
    documents = list(yaml.safe_load_all(done(arguments)))
    (spec_file,) = [
        entry["data"]["spec.yaml"]
        for entry in documents
        if entry["kind"] == "ConfigMap" and entry["metadata"]["name"] == "all"
    ]
    (served,) = load_specs(spec_file)
    assert [variant.model for variant in served.variants.values()] == ["models:/team-*@champion"]
    (servers,) = [entry for entry in documents if entry["kind"] == "StatefulSet"]
    assert servers["spec"]["replicas"] == 4
