"""An endpoint as a Docker Compose project: compose.yaml, and a mounted folder with the
spec.

The folder is mounted, because a container does not see the replacement of a single
mounted file.
"""

from collections.abc import Mapping

from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import is_loopback, reachable_url
from mlflow_deploy_plugin.ship.manifests.served import (
    HOME_FOLDER,
    SERVE,
    SPEC_FILE,
    SPEC_FOLDER,
    USER,
    Document,
    Place,
    dump_documents,
    environment_of,
    http_port,
    local_files,
    machine_name,
    refuse_strangers,
    served_spec,
)

SECRETS = "/run/secrets"


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return compose.yaml and the mounted spec. Raises InvalidConfig if the endpoint
    would be open without auth.

    The service listens on the address `server.host` of this machine, by default on
    loopback.
    """
    container = spec.container
    host = spec.server.host
    if not is_loopback(host):
        refuse_strangers(spec, f"server.host {host}")
    if container.network == "host":
        served = served_spec(spec, host)
    else:
        served = served_spec(spec)
    service = _service(spec, place, served.server.host)
    document: Document = {
        "name": machine_name(spec, place).lower().replace(".", "-"),
        "services": {
            spec.name: {key: value for key, value in service.items() if value not in ({}, [])}
        },
        "volumes": {"state": {}},
    }
    if container.secrets:
        document["secrets"] = {name: {"file": path} for name, path in container.secrets.items()}
    if container.network not in (None, "host"):
        document["networks"] = {container.network: {"external": True}}
    # Write "$$" for "$", because Compose reads a single "$" as the beginning of a shell
    # variable.
    return {
        "compose.yaml": dump_documents([document]).replace("$", "$$"),
        f"{spec.name}/{SPEC_FILE}": dump_spec(served),
    }


def _service(spec: EndpointSpec, place: Place, host: str) -> Document:
    """Return the service of a server that listens on `host`."""
    container = spec.container
    server = spec.server
    environment = environment_of(spec, place)
    if container.secrets:
        environment["ONNXSERVE_SECRETS"] = SECRETS
    mounts = {f"./{spec.name}": SPEC_FOLDER} | {source: source for source in local_files(spec)}
    reached: Document = {"network_mode": "host"}  # No port is published.
    if container.network != "host":
        address = server.host if ":" not in server.host else f"[{server.host}]"
        if address == "localhost":
            address = "127.0.0.1"
        ports = filter(None, (http_port(spec), server.grpc_port, server.metrics_port))
        reached = {"ports": [f"{address}:{port}:{port}" for port in ports]}
        if container.network is not None:
            reached["networks"] = [container.network]
    resources: Document = {"limits": {"pids": container.pids}}
    if container.cpus is not None:
        resources["limits"]["cpus"] = str(container.cpus)
    if spec.memory_limit is not None:
        resources["limits"]["memory"] = str(spec.memory_limit)
    if server.is_on_nvidia:
        device: Document = {"driver": "nvidia", "capabilities": ["gpu"]}
        if server.device_ids:
            device["device_ids"] = list(map(str, server.device_ids))
        else:
            device["count"] = 1
        resources["reservations"] = {"devices": [device]}
    return {
        "image": container.image_for(server),
        "command": SERVE,
        "environment": environment,
        "secrets": list(container.secrets),
        "user": f"{USER}:{USER}",
        "init": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp"],
        "volumes": [
            *(
                {"type": "bind", "source": source, "target": target, "read_only": True}
                for source, target in mounts.items()
            ),
            {"type": "volume", "source": "state", "target": HOME_FOLDER},
        ],
        "healthcheck": {
            "test": [
                "CMD",
                "onnxserve",
                "health",
                reachable_url(host, http_port(spec), server.scheme),
            ],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "10m",  # The server fetches and loads models in this period.
        },
        "restart": container.restart,
        "stop_grace_period": f"{server.stop_seconds}s",
        "deploy": {"resources": resources},
        **reached,
    }
