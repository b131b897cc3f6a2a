"""Tests of specs as Kubernetes objects: valid by the strict schemas of a recent
Kubernetes, and safe by default.
"""

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec, load_specs, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import kubernetes_documents
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.support.refusals import refused

PLACE = Place("ml")
MODEL = "models:/flight-delay/Production"
SHIPPED = sorted((Path(__file__).parents[3] / "docker" / "kubernetes").glob("*.yaml"))
CUSTOM = {"HTTPRoute", "PodMonitor", "ServiceMonitor"}


def rendered(config=None, place=PLACE):
    """Return the documents of an endpoint by kind, parsed from the printed text."""
    text = FORMATS["kubernetes"](new_endpoint("flights", MODEL, config), place)["flights.yaml"]
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def container_of(documents):
    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def assert_restricted(pod):
    """Check that Pod Security `restricted` and OpenShift's SCC restricted-v2 admit the
    pod.

    The SCC assigns user and group ids by namespace, and refuses a pod that sets its
    ids.
    """
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in pod["containers"]:
        rights = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["securityContext"] == rights
    assert set(chain.from_iterable(pod["volumes"])) <= {
        "name",
        "configMap",
        "emptyDir",
        "projected",
    }
    assert not pod["automountServiceAccountToken"]


def names(pattern):
    return st.from_regex(pattern, fullmatch=True)


NAMES = names("[a-z][a-z0-9-]{0,20}[a-z0-9]")
MODELS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
KUBERNETES = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(1, 9),
        "max_replicas": st.integers(10, 99),
        "target_cpu_percent": st.integers(1, 100),
        "gpus": st.integers(0, 8),
        "service_monitor": st.just(True),
        "requests_per_second": st.floats(0.1, 1000),
        "service_account": names("[a-z][a-z0-9-]{0,20}[a-z]"),
        "image_pull_secrets": st.lists(names("[a-z]{1,9}"), max_size=2),
        "allowed_namespaces": st.lists(names(r"[a-z]{1,9}|\*"), max_size=2),
        "node_selector": st.lists(names("([a-z]{1,9}/)?[a-z]{1,9}=[a-z]{0,9}"), max_size=2),
        "tolerations": st.lists(
            names("[a-z]{1,9}(=[a-z]{0,9})?(:(NoSchedule|NoExecute))?"), max_size=2
        ),
    },
)


MONITOR_LABELS = st.lists(names("[a-z]{1,9}=[a-z]{0,9}"), max_size=2)


def by_autoscaler_of_theirs(kubernetes):
    return {**kubernetes, "replicas": 0, "max_replicas": None}


PUBLIC = st.sampled_from(
    [
        {},
        {"host": "a.example"},
        {"host": "a.example", "tls_secret": "t"},
        {"host": "a.example", "gateway": "public"},
    ]
)
CONTAINER = st.fixed_dictionaries(
    {"cpus": st.floats(0.01, 64)},
    optional={
        "image": names("[a-z]{1,9}:[0-9]{1,3}"),
        "memory_bytes": st.integers(64 * 1024**2, 1024**4),
        "environment": st.dictionaries(
            names("[A-Z]{1,5}"), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
        ),
        "secrets": st.dictionaries(names("[A-Z]{1,5}"), st.just("store/uri")),
        "secret_files": st.dictionaries(
            names("[A-Z]{1,5}_FILE"), names("[a-z]{1,9}/[a-z.]{1,9}"), max_size=2
        ),
    },
)
SERVER = st.fixed_dictionaries(
    {"api_keys": st.just(True)},
    optional={
        "port": st.integers(1, 40000),
        "grpc_port": st.integers(40001, 50000),
        "metrics_port": st.integers(50001, 65535),
        "device": st.sampled_from(["cpu", "cuda"]),
        "graceful_timeout_seconds": st.integers(1, 3600),
        "workers": st.integers(1, 4),
        "model_memory": names("[1-9][0-9]?[KMGT]iB"),
        "model_disk": names("[1-9][0-9]?[KMGT]iB"),
    },
)

TLS = st.sampled_from(
    [{}, {"certfile": "own/tls.crt", "keyfile": "own/tls.key", "ca_certs": "callers/ca.crt"}]
)


@st.composite
def specs(draw):
    parts = {
        "kubernetes": {
            **draw(KUBERNETES | KUBERNETES.map(by_autoscaler_of_theirs)),
            **draw(PUBLIC),
        },
        "container": draw(CONTAINER),
        "server": {**draw(SERVER), **draw(TLS)},
    }
    if "service_monitor" in parts["kubernetes"]:
        parts["kubernetes"]["service_monitor_labels"] = draw(MONITOR_LABELS)
    return EndpointSpec.model_validate(
        {"name": draw(NAMES), "variants": {"a": {"model": draw(MODELS)}}, **parts}
    )


SPECS = specs()


@pytest.mark.long
@settings(max_examples=30)
@given(SPECS)
def test_every_spec_gives_valid_objects(endpoint):
    (text,) = FORMATS["kubernetes"](endpoint, PLACE).values()
    documents = list(yaml.safe_load_all(text))
    assert documents == kubernetes_documents(endpoint, PLACE)
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, "1.32", strict=True)
    by_kind = {document["kind"]: document for document in documents}
    template = by_kind["Deployment"]["spec"]["template"]
    for selector in (
        by_kind["Service"]["spec"]["selector"],
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):  # The schemas do not compare selectors with labels.
        assert selector.items() <= template["metadata"]["labels"].items()
    assert_restricted(template["spec"])
    (served,) = load_specs(by_kind["ConfigMap"]["data"]["spec.yaml"])
    assert served.variants == endpoint.variants


def test_pods_roll_without_downtime():
    documents = rendered()
    deployment = documents["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    container = container_of(documents)
    assert deployment["replicas"] == 3
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    drain = 5
    longest_request = 30
    shipping = 40
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(drain)]
    assert pod["terminationGracePeriodSeconds"] == drain + longest_request + shipping
    assert set(documents) == {
        "ConfigMap",
        "ServiceAccount",
        "Service",
        "Deployment",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }


def test_access_without_auth_is_limited_to_the_namespace():
    documents = rendered()
    assert documents["NetworkPolicy"]["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]
    # The network policy protects the server.
    assert "insecure: true" in documents["ConfigMap"]["data"]["spec.yaml"]
    with refused(InvalidConfig, "kubernetes.host", "f.example", "all clients"):
        rendered({"kubernetes.host": "f.example"})
    public = rendered({"kubernetes.host": "f.example", "server.api_keys": "true"})
    assert "insecure" not in public["ConfigMap"]["data"]["spec.yaml"]
    assert public["NetworkPolicy"]["spec"]["ingress"][0]["from"] == [{"namespaceSelector": {}}]


def test_only_server_container_and_kubernetes_changes_replace_pods():
    def template(config):
        return rendered(config)["Deployment"]["spec"]["template"]  # type: ignore[no-any-return]

    same = template({})
    for config in (
        {"variants.flights.weight": "7"},
        {"capture.fraction": "0.5"},
        {"monitors.m.kind": "drift"},
    ):
        assert template(config) == same, config
    for config in (
        {"server.threads": "7"},
        {"container.image": "x:1"},
        {"kubernetes.node_selector": "a=b"},
    ):
        assert template(config) != same, config


def test_resources_include_gpus():
    config = {
        "container.cpus": "1.5",
        "container.memory_bytes": str(1024**3),
        "server.device": "cuda",
    }
    container = container_of(rendered(config))
    limits = {"cpu": "1500m", "memory": "1073741824", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": limits, "limits": limits}
    assert container["image"] == "onnxserve:gpu"


def test_secrets_override_spec_and_place_variables():
    config = {
        "container.environment.A": "of $(C) $$spec",
        "container.environment.B": "b",
        "container.secrets.B": "store/uri",
    }
    environment = container_of(rendered(config, Place("ml", {"A": "of place", "C": "c"})))["env"]
    assert environment == [
        {"name": "A", "value": "of $$(C) $$$$spec"},
        {"name": "C", "value": "c"},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "store", "key": "uri"}}},
    ]


def test_certificate_and_key_are_mounted_from_secrets():
    documents = rendered(
        {
            "server.certfile": "own/tls.crt",
            "server.keyfile": "own/tls.key",
            "server.ca_certs": "callers/ca.crt",
        }
    )
    (served,) = load_specs(documents["ConfigMap"]["data"]["spec.yaml"])
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    mounts = {
        entry["name"]: entry["mountPath"] for entry in container_of(documents)["volumeMounts"]
    }
    (volume,) = (entry["projected"] for entry in pod["volumes"] if entry["name"] == "tls")
    mounted = {
        f"{mounts['tls']}/{item['path']}": f"{source['secret']['name']}/{item['key']}"
        for source in volume["sources"]
        for item in source["secret"]["items"]
    }
    server = served.server
    assert [mounted[str(path)] for path in (server.certfile, server.keyfile, server.ca_certs)] == [
        "own/tls.crt",
        "own/tls.key",
        "callers/ca.crt",
    ]


def test_secret_files_are_mounted_as_folder():
    documents = rendered({"container.secret_files.ONNXSERVE_KEYS_FILE": "callers/keys.json"})
    container = container_of(documents)
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    item = {"key": "keys.json", "path": "ONNXSERVE_KEYS_FILE"}
    sources = [{"secret": {"name": "callers", "items": [item]}}]
    assert {"name": "files", "projected": {"sources": sources}} in pod["volumes"]
    assert {"name": "files", "mountPath": "/run/secrets/files", "readOnly": True} in container[
        "volumeMounts"
    ]
    path = "/run/secrets/files/ONNXSERVE_KEYS_FILE"
    assert {"name": "ONNXSERVE_KEYS_FILE", "value": path} in container["env"]


KEDA = {"kubernetes.max_replicas": "9", "kubernetes.requests_per_second": "50"}


def rendered_for_keda(config):
    text = FORMATS["keda"](new_endpoint("flights", MODEL, config), PLACE)["flights.yaml"]
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_keda_scales_by_the_requests_of_all_pods(tmp_path):
    url = "https://prometheus.example/tenant"
    documents = rendered_for_keda({**KEDA, "kubernetes.prometheus_url": url})
    scaled = documents.pop("ScaledObject")
    query = 'sum(rate(onnxserve_requests_total{namespace="ml",endpoint="flights"}[2m]))'
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert scaled["spec"] == {
        "scaleTargetRef": {"name": "flights"},
        "minReplicaCount": 3,
        "maxReplicaCount": 9,
        "triggers": [
            {
                "type": "prometheus",
                # KEDA requires that the threshold is a text.
                "metadata": {"serverAddress": url, "threshold": "50.0", "query": query},
            }
        ],
    }
    # The other objects are those of a Deployment whose replicas any autoscaler sets.
    assert "replicas" not in documents["Deployment"]["spec"]
    assert "HorizontalPodAutoscaler" not in documents
    assert documents == rendered({"kubernetes.replicas": "0"})
    # The server exports the metric of the query with its label.
    metrics = Metrics(tmp_path)
    metrics.count_request(("flights", "champion", "flight-delay", "1", "v2", "200"), 0.1)
    assert b'\nonnxserve_requests_total{endpoint="flights",' in metrics.page()


@pytest.mark.parametrize("field", list(KEDA))
def test_keda_is_refused_without_its_fields(field):
    with refused(InvalidConfig, "KEDA", f"-C {field}="):
        rendered_for_keda({name: value for name, value in KEDA.items() if name != field})


def test_overlay_of_the_guide_is_applied(tmp_path):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (apt-get install kubernetes-client)")
    guide = (
        (Path(__file__).parents[3] / "docs" / "render.md").read_text().partition("## Kustomize")[2]
    )
    script = guide.partition("```sh\n")[2].partition("kubectl kustomize")[0]
    (tmp_path / "flights.spec.yaml").write_text(dump_spec(new_endpoint("flights", MODEL)))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True
    )
    build = ["kubectl", "kustomize", str(tmp_path / "flights" / "staging")]
    built = subprocess.run(build, capture_output=True, text=True, check=True).stdout
    documents = {document["kind"]: document for document in yaml.safe_load_all(built)}
    assert {document["metadata"]["namespace"] for document in documents.values()} == {"staging"}
    assert documents["Deployment"]["spec"]["replicas"] == 1
    assert container_of(documents)["image"] == "registry.example/onnxserve:0.1.0-cpu"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_manifest_is_valid_and_restricted(file):
    for document in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(document, "1.32", strict=True)
        spec = document.get("spec", {})
        if "template" in (workload := spec.get("jobTemplate", {}).get("spec", spec)):
            pod = workload["template"]["spec"]
            # A Service "onnxserve" would set ONNXSERVE_PORT.
            assert pod["enableServiceLinks"] is False
            assert_restricted(pod)
            (container,) = pod["containers"]
            help_page = CliRunner().invoke(main, [*container["args"], "--help"])
            assert help_page.exit_code == 0


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"kubernetes.max_replicas": "9"}, ["kubernetes.max_replicas", "CPU", "container.cpus"]),
        ({"kubernetes.max_replicas": "3", "container.cpus": "1"}, ["max_replicas 3", "replicas 3"]),
        (
            {"kubernetes.max_replicas": "3", "kubernetes.replicas": "0"},
            ["max_replicas 3", "replicas 0"],
        ),
        (
            {"kubernetes.requests_per_second": "0"},
            ["kubernetes.requests_per_second", "at least 0.001"],
        ),
        (
            {"kubernetes.prometheus_url": "prom:9090"},
            ["kubernetes.prometheus_url", "http://", "'prom:9090'"],
        ),
        ({"kubernetes.tls_secret": "t"}, ["tls_secret", "`host`"]),
        ({"kubernetes.tolerations": "a b"}, ["Kubernetes taint", "dedicated=ml:NoSchedule"]),
        ({"container.secrets.A": "store"}, ["container.secrets.A", "SECRET/KEY"]),
        ({"container.secret_files.A": "/keys.json"}, ["container.secret_files.A", "SECRET/KEY"]),
        (
            {"container.secret_files.A": "s/a", "container.secrets.A": "s/a"},
            ["secrets", "secret_files", "A"],
        ),
        (
            {"server.certfile": "/tls/tls.crt", "server.keyfile": "own/tls.key"},
            ["server.certfile", "'/tls/tls.crt'"],
        ),
    ],
)
def test_invalid_fields_are_refused(config, names):
    with refused(InvalidConfig, *names):
        rendered(config)


@pytest.mark.parametrize("form", ["kubernetes", "helm"])
def test_invalid_service_name_is_refused(form):
    with refused(InvalidConfig, "'Flights_1'", "Service"):
        FORMATS[form](new_endpoint("Flights_1", MODEL), PLACE)


def test_metrics_port_is_open_everywhere():
    documents = rendered({"server.metrics_port": "9100", "server.grpc_port": "8081"})
    port = {"name": "metrics", "protocol": "TCP"}
    assert {**port, "containerPort": 9100} in container_of(documents)["ports"]
    assert {**port, "port": 9100, "targetPort": "metrics"} in documents["Service"]["spec"]["ports"]
    assert {"protocol": "TCP", "port": "metrics"} in documents["NetworkPolicy"]["spec"]["ingress"][
        0
    ]["ports"]
    with refused(
        InvalidConfig, "port", "metrics_port", "8080"
    ):  # 8080 is the default port of a pod.
        rendered({"server.metrics_port": "8080"})


def test_prometheus_has_key_and_tls_settings():
    def scraped(config):
        (endpoint,) = rendered(config)["ServiceMonitor"]["spec"]["endpoints"]
        return endpoint  # type: ignore[no-any-return]

    # Keep the label `endpoint` of the server.
    plain = {"port": "http", "path": "/metrics", "honorLabels": True}
    monitored = {"kubernetes.service_monitor": "true"}
    assert scraped(monitored) == plain
    labelled = rendered({**monitored, "kubernetes.service_monitor_labels": "release=prom"})
    assert labelled["ServiceMonitor"]["metadata"]["labels"]["release"] == "prom"
    keyed = {
        **monitored,
        "server.api_keys": "true",
        "kubernetes.service_monitor_key": "prometheus/key",
    }
    assert scraped(keyed) == {
        **plain,
        "authorization": {"credentials": {"name": "prometheus", "key": "key"}},
    }
    tls = {**monitored, "server.certfile": "own/tls.crt", "server.keyfile": "own/tls.key"}
    assert scraped(tls) == {**plain, "scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    # This port needs neither a key nor TLS.
    with_port = {**keyed, **tls, "server.metrics_port": "9100"}
    assert scraped(with_port) == {**plain, "port": "metrics"}
    with refused(InvalidConfig, "service_monitor_key", "`service_monitor`"):
        rendered({"kubernetes.service_monitor_key": "prometheus/key"})
    with refused(InvalidConfig, "kubernetes.service_monitor_key", "SECRET/KEY"):
        rendered({**monitored, "kubernetes.service_monitor_key": "key"})


def test_memory_and_disk_follow_the_models():
    gib = 1024**3
    documents = rendered(
        {"server.model_memory": "4GiB", "server.model_disk": "20GiB", "server.workers": "2"}
    )
    resources = container_of(documents)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == str(5 * gib)
    volumes = documents["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "home", "emptyDir": {"sizeLimit": str(41 * gib)}} in volumes


def test_invalid_namespace_is_refused():
    with refused(InvalidConfig, "namespace", "'Bad Name'"):
        Place("Bad Name")


def test_selectors_exclude_pods_of_a_helm_release():
    documents = rendered({"kubernetes.service_monitor": "true"})
    label = {"app.kubernetes.io/name": "onnxserve"}
    for kind, field in (
        ("PodDisruptionBudget", "selector"),
        ("ServiceMonitor", "selector"),
        ("NetworkPolicy", "podSelector"),
    ):
        selector = documents[kind]["spec"][field]["matchLabels"]
        assert label.items() <= selector.items()
    assert label.items() <= documents["Service"]["spec"]["selector"].items()
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert label.items() <= labels.items()
