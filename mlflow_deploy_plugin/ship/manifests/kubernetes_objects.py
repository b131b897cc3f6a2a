"""An endpoint as Kubernetes objects: plain documents for `kubectl apply -f`, in the
newest API versions.

The pods run `onnxserve serve --spec` on a file of a ConfigMap. The server reads a
changed file again, so a change of variants or weights does not need new pods. A change
of `server`, `container` or `kubernetes` rolls the Deployment.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import partial

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, spec_document
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import SECRET_KEY, memory_bytes
from mlflow_deploy_plugin.ship.manifests.served import (
    HOME_FOLDER,
    SERVE,
    SPEC_FILE,
    SPEC_FOLDER,
    Document,
    Place,
    dump_documents,
    environment_of,
    http_port,
    make_document,
    refuse_strangers,
    served_spec,
)

_INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = {"app.kubernetes.io/managed-by": "onnxserve"}
CONTAINER = "onnxserve"
SERVICE_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
TLS_FOLDER = "/run/secrets/tls"
_TLS_FILES = {"ca_certs": "ca.crt", "certfile": "tls.crt", "keyfile": "tls.key"}
"""A field of `server` with a TLS file → the name of this file in `TLS_FOLDER`."""
_FILES_FOLDER = "/run/secrets/files"
_STARTUP_SECONDS = 600
"""The maximum time to fetch and load the models, in which a pod only receives startup
probes.
"""
_DRAIN_SECONDS = 5
"""The time in which a terminating pod still answers requests, while proxies and ingress
controllers remove it.
"""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the endpoint as one file of YAML documents. Raises the errors of
    `kubernetes_documents`.
    """
    return {f"{spec.name}.yaml": dump_documents(kubernetes_documents(spec, place))}


def render_keda(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the file of `render` with a ScaledObject of KEDA instead of a
    HorizontalPodAutoscaler.

    Raises InvalidConfig if a field that KEDA needs is not set, and the errors of
    `kubernetes_documents`.
    """
    kubernetes = spec.kubernetes
    for field in ("requests_per_second", "max_replicas"):
        if getattr(kubernetes, field) is None:
            raise InvalidConfig(f"KEDA needs kubernetes.{field}: set -C kubernetes.{field}=…")
    # With 0 replicas, the Deployment leaves the number of pods to KEDA.
    unscaled = apply_config(spec, {"kubernetes.replicas": 0, "kubernetes.max_replicas": ""})
    selected = f'namespace="{place.namespace}",endpoint="{spec.name}"'
    trigger = {
        "serverAddress": kubernetes.prometheus_url,
        # `rate` needs two samples, and the Prometheus operator scrapes every 30 s.
        "query": f"sum(rate(onnxserve_requests_total{{{selected}}}[2m]))",
        # KEDA divides the sum by the number of pods.
        "threshold": str(kubernetes.requests_per_second),
    }
    scaled = {
        "scaleTargetRef": {"name": spec.name},
        "minReplicaCount": kubernetes.replicas,
        "maxReplicaCount": kubernetes.max_replicas,
        "triggers": [{"type": "prometheus", "metadata": trigger}],
    }
    labels = {**endpoint_labels(spec.name), **MANAGED_BY}
    api_version = "keda.sh/v1alpha1"
    scaler = make_document(spec.name, place, api_version, "ScaledObject", labels, spec=scaled)
    return {f"{spec.name}.yaml": dump_documents([*kubernetes_documents(unscaled, place), scaler])}


def kubernetes_documents(spec: EndpointSpec, place: Place) -> list[Document]:
    """Return the objects of an endpoint, in the order in which they must be applied.

    Raises InvalidConfig if the name is not valid for a Service, the endpoint is open
    without auth, or fields conflict.
    """
    kubernetes = spec.kubernetes
    check_name(spec)
    if kubernetes.max_replicas is not None and spec.container.cpus is None:
        raise InvalidConfig(
            "kubernetes.max_replicas scales by CPU: set container.cpus, the cores per pod"
        )
    if kubernetes.host is not None:
        refuse_strangers(spec, f"kubernetes.host {kubernetes.host}")
    selector = endpoint_labels(spec.name)
    labels = {**selector, **MANAGED_BY}
    document = partial(make_document, spec.name, place, labels=labels)
    documents = [document("v1", "ConfigMap", data={SPEC_FILE: dump_spec(spec_of_pod(spec))})]
    if kubernetes.service_account is None:
        documents.append(document("v1", "ServiceAccount", automountServiceAccountToken=False))
    documents += [
        document("v1", "Service", spec={"selector": selector, "ports": _service_ports(spec)}),
        document("apps/v1", "Deployment", spec=_deployment(spec, place, labels)),
        document(
            "policy/v1",
            "PodDisruptionBudget",
            spec={"maxUnavailable": 1, "selector": {"matchLabels": selector}},
        ),
        document("networking.k8s.io/v1", "NetworkPolicy", spec=_network_policy(spec, selector)),
    ]
    if kubernetes.max_replicas is not None:
        target = {"type": "Utilization", "averageUtilization": kubernetes.target_cpu_percent}
        autoscaler = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name},
            "minReplicas": kubernetes.replicas,
            "maxReplicas": kubernetes.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        documents.append(document("autoscaling/v2", "HorizontalPodAutoscaler", spec=autoscaler))
    if kubernetes.gateway is not None:
        backend = {"name": spec.name, "port": http_port(spec)}
        route = {
            "parentRefs": [{"name": kubernetes.gateway}],
            "hostnames": [kubernetes.host],
            "rules": [{"backendRefs": [backend]}],
        }
        documents.append(document("gateway.networking.k8s.io/v1", "HTTPRoute", spec=route))
    elif kubernetes.host is not None:
        documents.append(document("networking.k8s.io/v1", "Ingress", spec=_ingress(spec)))
    if kubernetes.service_monitor:
        monitor = {"selector": {"matchLabels": selector}, "endpoints": [_scraped_port(spec)]}
        own_labels = {**labels_of(kubernetes.service_monitor_labels), **labels}
        documents.append(
            document("monitoring.coreos.com/v1", "ServiceMonitor", labels=own_labels, spec=monitor)
        )
    return documents


def _deployment(spec: EndpointSpec, place: Place, labels: dict[str, str]) -> Document:
    """Return the spec of the Deployment, whose pods have `labels`. With an autoscaler,
    it has no number of pods.
    """
    # A new digest rolls the Deployment. The Helm chart must compute the same digest.
    server = json.dumps(
        spec_document(spec_of_pod(spec))["server"],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    digest = hashlib.sha256(server.encode()).hexdigest()[:16]
    deployment: Document = {}
    if not spec.kubernetes.is_autoscaled:
        deployment["replicas"] = spec.kubernetes.replicas
    return {
        **deployment,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        # Never change this selector, because the selector of a running Deployment is
        # immutable.
        "selector": {"matchLabels": {_INSTANCE: spec.name}},
        "template": {
            "metadata": {"labels": labels, "annotations": {"onnxserve/server": digest}},
            "spec": pod_of(spec, place),
        },
    }


def _ingress(spec: EndpointSpec) -> Document:
    """Return the spec of the Ingress, with TLS if the spec names a certificate."""
    kubernetes = spec.kubernetes
    backend = {"service": {"name": spec.name, "port": {"name": "http"}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    ingress: Document = {"rules": [{"host": kubernetes.host, "http": {"paths": [path]}}]}
    if kubernetes.ingress_class is not None:
        ingress["ingressClassName"] = kubernetes.ingress_class
    if kubernetes.tls_secret is not None:
        ingress["tls"] = [{"hosts": [kubernetes.host], "secretName": kubernetes.tls_secret}]
    return ingress


def _scraped_port(spec: EndpointSpec) -> Document:
    """Return the port that Prometheus reads. Without honorLabels, the operator
    overwrites the label `endpoint` with the name of the port.
    """
    scraped: Document = {"port": "metrics", "path": "/metrics", "honorLabels": True}
    if spec.server.metrics_port is not None:  # This port needs neither TLS nor a key.
        return scraped
    scraped["port"] = "http"
    # Prometheus uses a pod's IP, which the certificate does not contain.
    if spec.server.certfile:
        scraped |= {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    secret = spec.kubernetes.service_monitor_key
    if secret is not None:
        key = _secret_key("kubernetes.service_monitor_key", secret)
        scraped["authorization"] = {"credentials": key}
    return scraped


def endpoint_labels(name: str) -> dict[str, str]:
    """Return the labels of an endpoint's objects. A Helm release of the same name has
    the same instance label.
    """
    return {"app.kubernetes.io/name": "onnxserve", _INSTANCE: name}


def labels_of(pairs: Iterable[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in pairs)


def check_name(spec: EndpointSpec) -> None:
    if not SERVICE_NAME.fullmatch(spec.name):
        raise InvalidConfig(
            f"{spec.name!r} is not a valid name of a Kubernetes Service: it needs at most 63 "
            "lowercase letters, digits and -, and must begin with a letter; give the endpoint "
            "such a name (-n)"
        )


def _service_ports(spec: EndpointSpec) -> list[Document]:
    """Return the ports of the Service: HTTP, and if the spec has them, gRPC and the
    metrics.
    """
    # Specify the protocol of each port, because server-side apply of older Kubernetes
    # versions requires it.
    ports = [{"name": "http", "port": http_port(spec), "targetPort": "http", "protocol": "TCP"}]
    for name, port in (("grpc", spec.server.grpc_port), ("metrics", spec.server.metrics_port)):
        if port is not None:
            ports.append({"name": name, "port": port, "targetPort": name, "protocol": "TCP"})
    return ports


def spec_of_pod(spec: EndpointSpec) -> EndpointSpec:
    """Return the spec for the server of a pod. Its certificate and key have the paths
    at which the pod mounts them.
    """
    paths = {field: f"{TLS_FOLDER}/{_TLS_FILES[field]}" for field in _tls_keys(spec)}
    served = served_spec(spec)
    return served.model_copy(update={"server": served.server.model_copy(update=paths)})


def _tls_keys(spec: EndpointSpec) -> dict[str, str]:
    """Return the TLS files of the server: field of `server` → SECRET/KEY."""
    keys = {field: getattr(spec.server, field) for field in _TLS_FILES}
    return {field: key for field, key in keys.items() if key is not None}


def _volumes(spec: EndpointSpec) -> dict[str, tuple[str, Document]]:
    """Return volume → its path in the pod and its source."""
    home = {}
    if spec.server.model_disk is not None:
        # The agent deletes files of models only after others have been fetched.
        size = 2 * memory_bytes(spec.server.model_disk) + spec.server.max_spool_bytes
        home = {"sizeLimit": str(size)}
    volumes: dict[str, tuple[str, Document]] = {
        "spec": (SPEC_FOLDER, {"configMap": {"name": spec.name}}),
        "home": (HOME_FOLDER, {"emptyDir": home}),
        "tmp": ("/tmp", {"emptyDir": {}}),
    }
    files = {
        name: _secret_key(f"container.secret_files.{name}", key)
        for name, key in sorted(spec.container.secret_files.items())
    }
    if files:
        volumes["files"] = (_FILES_FOLDER, _projected(files))
    tls = {
        _TLS_FILES[field]: _secret_key(f"server.{field}", key)
        for field, key in _tls_keys(spec).items()
    }
    if tls:
        volumes["tls"] = (TLS_FOLDER, _projected(tls))
    return volumes


def pod_of(spec: EndpointSpec, place: Place) -> Document:
    """Return the pod that serves the spec of the ConfigMap with the endpoint's name.

    Raises InvalidConfig if a secret, a certificate or a key is not specified as
    SECRET/KEY.
    """
    kubernetes = spec.kubernetes
    volumes = _volumes(spec)
    mounts = []
    for name, (path, source) in volumes.items():
        mount: Document = {"name": name, "mountPath": path}
        if "emptyDir" not in source:
            mount["readOnly"] = True
        mounts.append(mount)
    pod: Document = {
        "serviceAccountName": kubernetes.service_account or spec.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # A Service "onnxserve" must not set ONNXSERVE_PORT.
        "terminationGracePeriodSeconds": _DRAIN_SECONDS + spec.server.stop_seconds,
        # No user id is set: the image has a user, and OpenShift refuses ids that it has
        # not assigned to the namespace.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {_INSTANCE: spec.name}},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [{**_container(spec, place), "volumeMounts": mounts}],
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
    }
    if kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    if kubernetes.node_selector:
        pod["nodeSelector"] = labels_of(kubernetes.node_selector)
    if kubernetes.tolerations:
        pod["tolerations"] = []
        for taint in kubernetes.tolerations:
            # A taint has kubectl's notation KEY[=VALUE][:EFFECT].
            label, _, effect = taint.partition(":")
            key, equals, value = label.partition("=")
            toleration = {"key": key, "operator": "Exists"}
            if equals:
                toleration |= {"operator": "Equal", "value": value}
            if effect:
                toleration["effect"] = effect
            pod["tolerations"].append(toleration)
    return pod


def _container(spec: EndpointSpec, place: Place) -> Document:
    """Return the server's container with its variables, resources, ports and probes.

    Without `kubernetes.gpus`, a server on a GPU gets one for each of its devices.
    """
    container = spec.container
    ports = [
        {"name": port["name"], "containerPort": port["port"], "protocol": "TCP"}
        for port in _service_ports(spec)
    ]

    def probe(path: str, period: int, failures: int) -> Document:
        """Return a probe that is sent every `period` seconds."""
        request = {"path": path, "port": "http"}
        if spec.server.certfile:
            request["scheme"] = "HTTPS"
        return {
            "httpGet": request,
            "periodSeconds": period,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }

    mounted = container.model_copy(
        update={
            "secret_files": {name: f"{_FILES_FOLDER}/{name}" for name in container.secret_files}
        }
    )
    variables = environment_of(spec.model_copy(update={"container": mounted}), place)
    # Write "$$" for "$", because Kubernetes replaces "$(A)" by the value of the
    # variable A.
    environment: list[Document] = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in variables.items()
    ]
    environment += [
        {"name": name, "valueFrom": {"secretKeyRef": _secret_key(f"container.secrets.{name}", key)}}
        for name, key in sorted(container.secrets.items())
    ]
    limits: dict[str, str] = {}
    if container.cpus is not None:  # The server uses as many threads as CPUs.
        limits["cpu"] = f"{round(container.cpus * 1000)}m"
    if spec.memory_limit is not None:
        limits["memory"] = str(spec.memory_limit)
    gpus = spec.kubernetes.gpus
    if gpus is None and spec.server.is_on_nvidia:
        gpus = max(1, len(spec.server.device_ids))
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
    resources = {"requests": {"cpu": "250m", "memory": "256Mi", **limits}}
    if limits:
        resources["limits"] = limits
    return {
        "name": CONTAINER,
        "image": container.image_for(spec.server),
        "args": SERVE,
        "env": environment,
        "ports": ports,
        "resources": resources,
        "startupProbe": probe("/ping", period=2, failures=_STARTUP_SECONDS // 2),
        "readinessProbe": probe("/v2/health/ready", period=5, failures=2),
        "livenessProbe": probe("/v2/health/live", period=10, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_DRAIN_SECONDS)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _secret_key(field: str, reference: str) -> Document:
    if re.fullmatch(SECRET_KEY, reference) is None:
        raise InvalidConfig(f"{field}: SECRET/KEY is expected on Kubernetes (got {reference!r})")
    name, _, key = reference.partition("/")
    return {"name": name, "key": key}


def _projected(files: Mapping[str, Document]) -> Document:
    """Return the source of a volume with these files, each from a key of a Secret.
    kubelet updates the files.
    """
    sources = [
        {"secret": {"name": key["name"], "items": [{"key": key["key"], "path": file}]}}
        for file, key in files.items()
    ]
    return {"projected": {"sources": sources}}


def _network_policy(spec: EndpointSpec, selector: Mapping[str, str]) -> Document:
    """Return the policy that admits callers from the namespace of the endpoint and from
    its allowed namespaces. With a host, callers from all namespaces are admitted unless
    the spec lists namespaces.
    """
    namespaces = spec.kubernetes.allowed_namespaces
    if not namespaces and spec.kubernetes.host is not None:
        namespaces = ("*",)
    callers: list[Document] = [{"podSelector": {}}]
    if "*" in namespaces:
        callers = [{"namespaceSelector": {}}]
    elif namespaces:
        expression = {
            "key": "kubernetes.io/metadata.name",
            "operator": "In",
            "values": list(namespaces),
        }
        callers.append({"namespaceSelector": {"matchExpressions": [expression]}})
    ports = [{"protocol": "TCP", "port": port["targetPort"]} for port in _service_ports(spec)]
    return {
        "podSelector": {"matchLabels": dict(selector)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": callers, "ports": ports}],
    }
