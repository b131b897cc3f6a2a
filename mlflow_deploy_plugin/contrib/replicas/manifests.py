"""The replicas and their nginx as manifests: the formats of `onnxserve render` for a
spec with `proxy`.
"""

from collections.abc import Mapping
from functools import partial
from hashlib import sha256

import yaml

from mlflow_deploy_plugin.contrib.replicas.routing import nginx_conf
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.model_uri import model_pattern
from mlflow_deploy_plugin.core.spec.document import apply_config
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ProxySpec
from mlflow_deploy_plugin.core.spec.types import is_loopback
from mlflow_deploy_plugin.ship.manifests import compose
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import (
    MANAGED_BY,
    endpoint_labels,
    kubernetes_documents,
    spec_of_pod,
)
from mlflow_deploy_plugin.ship.manifests.served import (
    USER,
    Document,
    Place,
    dump_documents,
    http_port,
    make_document,
    refuse_strangers,
)

_CONFIG_FOLDER = "/etc/onnxserve-proxy"
_CONFIG = "nginx.conf"
_COMMAND = ["nginx", "-e", "stderr", "-c", f"{_CONFIG_FOLDER}/{_CONFIG}", "-g", "daemon off;"]
_STEP = 10
"""The ports of a replica in compose are this many above those of the one before it."""
_ADDRESS = "x-real-ip"
"""The header in which nginx sends the address of the caller."""
_LONGEST_NAME = 52
"""A StatefulSet adds 11 characters to its name for a label, which has at most 63."""


def kubernetes_files(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the objects as one file. Raises InvalidConfig like `_documents`."""
    return {f"{spec.name}.yaml": dump_documents(_documents(spec, place))}


def helm_files(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the objects as values of the Helm chart, whose release sets the namespace.
    Raises InvalidConfig like `_documents`.
    """
    documents = _documents(spec, place)
    for document in documents:
        del document["metadata"]["namespace"]
    return {f"{spec.name}.values.yaml": dump_documents([{"objects": documents}])}


def compose_files(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return compose.yaml, the spec of each replica, and the configuration of nginx.
    Raises InvalidConfig for fields that the replicas cannot have.

    nginx is in the network of this machine, and reaches the published ports of the
    replicas there, because the address of a container changes.
    """
    spec, proxy = _checked(spec)
    host = spec.server.host
    if not is_loopback(host):
        refuse_strangers(spec, f"server.host {host}")
    _check_ports(spec, proxy)
    replicas = [_moved(spec, number) for number in range(1, proxy.replicas + 1)]
    addresses = [_addresses("127.0.0.1", replica) for replica in replicas]
    listen = _addresses(f"[{host}]" if ":" in host else host, spec)
    project, files = _compose_replicas(replicas, place)
    name = f"{spec.name}-proxy"
    files[f"{name}/{_CONFIG}"] = nginx_conf(proxy, spec.server, listen, addresses)
    project["services"][name] = _compose_proxy(spec, proxy, [*project["services"]])
    return {"compose.yaml": dump_documents([project]).replace("$", "$$"), **files}


def _compose_replicas(
    replicas: list[EndpointSpec], place: Place
) -> tuple[Document, dict[str, str]]:
    """Return the project with the services of the replicas, and their specs by path."""
    project: Document = {"services": {}, "volumes": {}}
    files: dict[str, str] = {}
    for replica in replicas:
        rendered = dict(compose.render(replica, place))
        document = yaml.safe_load(rendered.pop("compose.yaml").replace("$$", "$"))
        service = document["services"][replica.name]
        service["volumes"][-1]["source"] = replica.name
        project["services"][replica.name] = service
        project["volumes"][replica.name] = {}
        project = {**document, **project, "name": document["name"].rpartition("-")[0]}
        files |= rendered
    return project, files


def _moved(spec: EndpointSpec, number: int) -> EndpointSpec:
    """Return the spec of a replica that listens on loopback, on ports of its own."""
    server = spec.server
    ports = {"port": http_port(spec), "grpc_port": server.grpc_port}
    ports["metrics_port"] = server.metrics_port
    moved = {f"server.{field}": port + _STEP * number for field, port in ports.items() if port}
    replica = spec.model_copy(update={"name": f"{spec.name}-{number}"})
    return apply_config(replica, {**moved, "server.host": "127.0.0.1"})


def _compose_proxy(spec: EndpointSpec, proxy: ProxySpec, replicas: list[str]) -> Document:
    """Return the service of nginx."""
    mounts = {f"./{spec.name}-proxy": _CONFIG_FOLDER}
    for file in filter(None, (spec.server.certfile, spec.server.keyfile)):
        mounts[file] = file
    return {
        "image": proxy.image,
        "entrypoint": _COMMAND,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "network_mode": "host",
        "tmpfs": ["/tmp:size=1g"],
        "volumes": [
            {"type": "bind", "source": source, "target": target, "read_only": True}
            for source, target in mounts.items()
        ],
        "restart": spec.container.restart,
        "depends_on": replicas,
        "deploy": {"resources": {"limits": {"pids": 64}}},
    }


def _addresses(host: str, spec: EndpointSpec) -> dict[str, str]:
    """Return the addresses of the server's protocols on a host."""
    addresses = {"http": f"{host}:{http_port(spec)}"}
    if spec.server.grpc_port is not None:
        addresses["grpc"] = f"{host}:{spec.server.grpc_port}"
    return addresses


def _check_ports(spec: EndpointSpec, proxy: ProxySpec) -> None:
    """Raise InvalidConfig if two of nginx and the replicas would have the same port of
    this machine.
    """
    server = spec.server
    owners: dict[int, str] = {}
    for number in range(proxy.replicas + 1):
        for port in filter(None, (http_port(spec), server.grpc_port, server.metrics_port)):
            moved = port + _STEP * number
            if moved in owners:
                raise InvalidConfig(
                    f"the ports {owners[moved]} and {port} meet at {moved}, because the ports of "
                    f"each replica are {_STEP} above the previous replica's: set -C "
                    "server.grpc_port or server.metrics_port whose last digit differs from that of "
                    "server.port"
                )
            owners[moved] = str(port)


def _checked(spec: EndpointSpec) -> tuple[EndpointSpec, ProxySpec]:
    """Return the spec of a replica, and the proxy. Raises InvalidConfig for a spec that
    does not serve all registered models, or whose fields do not fit several replicas.
    """
    proxy = spec.proxy or ProxySpec()
    if model_pattern([spec]) is None:
        raise InvalidConfig(
            "proxy: only a server of all registered models has replicas behind a proxy: render "
            "--registry @ALIAS, or use kubernetes.replicas"
        )
    if spec.server.ca_certs is not None:
        raise InvalidConfig(
            "server.ca_certs: a client certificate does not pass the proxy: set -C "
            "server.api_keys=true or -C server.jwt_issuer=…"
        )
    if spec.server.rate_limit is not None and spec.server.rate_limit_header is None:
        # The address of each caller is nginx's.
        spec = apply_config(spec, {"server.rate_limit_header": _ADDRESS})
    return spec, proxy


def _documents(spec: EndpointSpec, place: Place) -> list[Document]:
    """Return the objects of the replicas and of nginx, in the order in which they must
    be applied. Raises InvalidConfig like `_checked` and `kubernetes_documents`.

    Each replica has its own Service: nginx looks up a name only when it starts, the
    address of a Service stays, and a connection to a Service whose pod is not ready is
    refused.
    """
    spec, proxy = _checked(spec)
    if len(spec.name) > _LONGEST_NAME:
        raise InvalidConfig(f"{spec.name!r} has more than {_LONGEST_NAME} characters: -n NAME")
    if spec.kubernetes.max_replicas is not None:
        raise InvalidConfig(
            "kubernetes.max_replicas: each replica has its share of the models; set "
            "proxy.replicas instead"
        )
    is_scraped = spec.kubernetes.service_monitor and spec.server.metrics_port is None
    if is_scraped and spec.server.rate_limit_header == _ADDRESS:
        raise InvalidConfig(
            "kubernetes.service_monitor: with server.rate_limit, only nginx reaches the port of a "
            "replica; set -C server.metrics_port=9100"
        )
    spec = apply_config(spec, {"kubernetes.replicas": proxy.replicas})
    documents = []
    for document in kubernetes_documents(spec, place):
        match document["kind"]:
            case "Service":
                documents += _services(document, spec, proxy)
            case "Deployment":
                pod = document["spec"]["template"]["spec"]
                # The names of a StatefulSet's pods stay.
                fields = {**document["spec"], "serviceName": spec.name}
                fields["podManagementPolicy"] = "Parallel"
                del fields["strategy"]
                documents.append({**document, "kind": "StatefulSet", "spec": fields})
            case "NetworkPolicy":
                of_proxy = _proxy_documents(spec, proxy, place, pod, document["spec"])
                if spec.server.rate_limit_header == _ADDRESS:
                    document = _only_from_proxy(document, f"{spec.name}-proxy")
                documents += [document, *of_proxy]
            case _:
                documents.append(document)
    return documents


def _only_from_proxy(document: Document, proxy: str) -> Document:
    """Return the NetworkPolicy of the replicas, which admits only nginx except for the
    metrics: any other caller could send the address that is counted.
    """
    (rule,) = document["spec"]["ingress"]
    served = _without_metrics(rule["ports"])
    metrics = [port for port in rule["ports"] if port not in served]
    from_proxy = {"from": [{"podSelector": {"matchLabels": endpoint_labels(proxy)}}]}
    rules = [{**from_proxy, "ports": served}]
    if metrics:
        rules.append({**rule, "ports": metrics})
    return {**document, "spec": {**document["spec"], "ingress": rules}}


def _without_metrics(ports: list[Document]) -> list[Document]:
    """Return the ports that nginx also has. A rule of a NetworkPolicy names the port in
    `port`.
    """
    return [port for port in ports if "metrics" not in (port.get("name"), port.get("port"))]


def _services(document: Document, spec: EndpointSpec, proxy: ProxySpec) -> list[Document]:
    """Return the Services of nginx, with the endpoint's name, and of each replica."""
    services = []
    of_proxy = endpoint_labels(f"{spec.name}-proxy")
    ports = _without_metrics(document["spec"]["ports"])
    services.append(
        {
            **document,
            "metadata": {**document["metadata"], "labels": {**of_proxy, **MANAGED_BY}},
            "spec": {"selector": of_proxy, "ports": ports},
        }
    )
    for number in range(proxy.replicas):
        name = f"{spec.name}-{number}"
        selector = {**document["spec"]["selector"], "statefulset.kubernetes.io/pod-name": name}
        services.append(
            {
                **document,
                "metadata": {**document["metadata"], "name": name},
                "spec": {**document["spec"], "selector": selector},
            }
        )
    return services


def _proxy_documents(
    spec: EndpointSpec, proxy: ProxySpec, place: Place, pod: Document, policy: Document
) -> list[Document]:
    """Return the objects of nginx. `pod` and `policy`, a NetworkPolicy, are those of
    the replicas.
    """
    name = f"{spec.name}-proxy"
    selector = endpoint_labels(name)
    labels = {**selector, **MANAGED_BY}
    document = partial(make_document, name, place, labels=labels)
    replicas = [_addresses(f"{spec.name}-{number}", spec) for number in range(proxy.replicas)]
    listen = _addresses("0.0.0.0", spec)
    has_ingress = spec.kubernetes.host is not None
    config = nginx_conf(proxy, spec_of_pod(spec).server, listen, replicas, has_ingress)
    # A new configuration rolls the Deployment.
    annotations = {"onnxserve/config": sha256(config.encode()).hexdigest()[:16]}
    template = {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": _proxy_pod(name, proxy, pod),
    }
    selected = {"matchLabels": selector}
    (rule,) = policy["ingress"]
    ingress = [{**rule, "ports": _without_metrics(rule["ports"])}]
    admitted = {**policy, "podSelector": selected, "ingress": ingress}
    deployment = {"replicas": 2, "selector": selected, "template": template}
    return [
        document("v1", "ConfigMap", data={_CONFIG: config}),
        document("apps/v1", "Deployment", spec=deployment),
        document(
            "policy/v1", "PodDisruptionBudget", spec={"maxUnavailable": 1, "selector": selected}
        ),
        document("networking.k8s.io/v1", "NetworkPolicy", spec=admitted),
    ]


def _proxy_pod(name: str, proxy: ProxySpec, pod: Document) -> Document:
    """Return the pod of nginx, with the rights and the certificate of a replica."""
    (container,) = pod["containers"]
    of_tls = [mount for mount in container["volumeMounts"] if mount["name"] == "tls"]
    kept = ("enableServiceLinks", "imagePullSecrets", "securityContext")
    nginx = {
        "name": "nginx",
        "image": proxy.image,
        "command": _COMMAND,
        "ports": _without_metrics(container["ports"]),
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        "readinessProbe": container["readinessProbe"],
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 10},
        "lifecycle": container["lifecycle"],
        "securityContext": container["securityContext"],
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            *of_tls,
        ],
    }
    return {
        **{field: pod[field] for field in kept if field in pod},
        "terminationGracePeriodSeconds": pod["terminationGracePeriodSeconds"],
        "automountServiceAccountToken": False,
        "containers": [nginx],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},  # bodies of requests
            *(volume for volume in pod["volumes"] if volume["name"] == "tls"),
        ],
    }
