"""The containers of an endpoint: their options, the reason why they ended, and the
conversion of Docker's errors.

Containers run without privileges: as the user who deploys (for root: the user of the
image), on a read-only file system and without capabilities. A label has a digest of the
options whose change requires a new container.
"""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from docker.errors import APIError, DockerException
from docker.models.containers import Container
from docker.types import DeviceRequest, Mount

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    DeploymentFailed,
    InvalidConfig,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.settings import Settings, absolute_path
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import is_loopback, reachable_url
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.ship.deployments.backends.supervisor import error_line, server_environment
from mlflow_deploy_plugin.ship.manifests.served import (
    HOME_FOLDER,
    USER,
    Document,
    asks_mlflow,
    local_files,
)

ENDPOINT = "onnxserve.endpoint"
HOME = "onnxserve.home"
SLOT = "onnxserve.slot"
DIGEST = "onnxserve.digest"
ADDRESS = "onnxserve.address"
"""The labels of a container with the digest of its options and with its published
address.
"""
NETWORK = "onnxserve"
"""The network of the listeners. Containers on it cannot reach each other."""
_PASSED_ON = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "ONNXSERVE_")
_NOT_PASSED_ON = {f"ONNXSERVE_{name}" for name in ("STORE_URI", "KEYS_FILE", "LISTENER", "SECRETS")}
_LISTENER_MEMORY = 64 * 1024**2
_LAST_LINES = 100
_IS_HEALTHY = ("CMD", "onnxserve", "health")
_KILLED = 128 + signal.SIGKILL
_PORT_IN_USE = r"port is already allocated|address already in use"


def server_name(endpoint: str) -> str:
    if len(endpoint) > 1:
        return endpoint
    return f"onnxserve-{endpoint}"  # Docker refuses a name of one letter.


def listener_name(endpoint: str) -> str:
    return f"{endpoint}-listener"


def volume_name(endpoint: str) -> str:
    return f"onnxserve-{endpoint}"


def home_folder(endpoint: str, settings: Settings) -> Path:
    """Return the folder with the files of an endpoint's servers. Containers mount the
    folder at the same path.
    """
    return settings.home_path / "docker" / endpoint


def server_options(spec: EndpointSpec, settings: Settings, image_id: str) -> Document:
    """Return a server's arguments for `containers.create`. The variables include those
    that are passed on from this process.

    Raises InvalidConfig if a required file is missing, or the container cannot reach
    the registry.
    """
    is_host = spec.container.network == "host"
    for field in ("grpc_port", "metrics_port"):
        if getattr(spec.server, field) is not None and not is_host:
            raise InvalidConfig(f"server.{field} of a container needs -C container.network=host")
    variables = {**spec.container.environment, **spec.container.secret_files}
    for name, path in spec.container.secrets.items():
        field = f"container.secrets.{name}"
        if not path.startswith(("/", "~")):  # The next command may have another working directory.
            raise InvalidConfig(
                f"{field}: an absolute path is expected, or one from ~ (got {path!r})"
            )
        variables[name] = read_text(absolute_path(path), f"{field}: the file").rstrip("\n")
    options = _fixed_options(spec, settings)
    parts = [
        image_id,
        options,
        variables,
        spec.server.model_dump(mode="json"),
        spec.container.restart,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    folder = home_folder(spec.name, settings)
    inherited = server_environment(folder, settings)
    if asks_mlflow(spec):
        check_registry(inherited["MLFLOW_REGISTRY_URI"], is_host)
    environment = {
        name: value
        for name, value in inherited.items()
        if name.startswith(_PASSED_ON) and name not in _NOT_PASSED_ON
    }
    environment["ONNXSERVE_HOME"] = str(folder)
    environment["ONNXSERVE_HOST"] = spec.server.host
    environment["ONNXSERVE_PORT"] = str(spec.server.port)
    if settings.keys_file is not None:
        environment["ONNXSERVE_KEYS_FILE"] = str(settings.keys_file.absolute())
    if not is_host:
        environment["ONNXSERVE_LISTENER"] = f"{HOME_FOLDER}/listener"
    return {
        **options,
        "environment": environment | variables,
        "labels": {**_labels(spec, settings), DIGEST: digest},
    }


def _fixed_options(spec: EndpointSpec, settings: Settings) -> Document:
    """Return the options of a server without its environment and its labels. The
    folders of the inference log are created.

    Raises InvalidConfig if the server needs a file with keys, and none is set.
    """
    container = spec.container
    files = local_files(spec)
    if spec.server.api_keys and "ONNXSERVE_KEYS_FILE" not in container.secret_files:
        if settings.keys_file is None:
            raise InvalidConfig(
                "server.api_keys of a container reads the keys from a file: run `onnxserve keys "
                "export > keys.json`, and set ONNXSERVE_KEYS_FILE=keys.json for this command"
            )
        files.append(str(settings.keys_file.absolute()))
    is_fixed = dict.fromkeys(files, True)
    if ":" not in (log := settings.inference_log):
        for folder in (Path(log), *Path(log).glob("_*")):
            make_folder(folder, 0o755)
        is_fixed[log] = False
    is_fixed[str(home_folder(spec.name, settings))] = False
    mounts = [
        Mount(path, path, "bind", read_only=fixed) for path, fixed in sorted(is_fixed.items())
    ]
    host = spec.server.host
    if container.network != "host":
        host = "127.0.0.1"
        mounts.append(Mount(HOME_FOLDER, volume_name(spec.name)))
    url = reachable_url(host, spec.server.port, spec.server.scheme)
    options: Document = {
        "image": container.image_for(spec.server),
        "entrypoint": ["onnxserve"],
        "network": container.network or "bridge",
        "mounts": mounts,
        "pids_limit": container.pids,
        "healthcheck": {"test": [*_IS_HEALTHY, url]},
        **_hardened(),
    }
    if container.cpus is not None:
        options["nano_cpus"] = int(container.cpus * 1e9)
    if spec.memory_limit is not None:
        options |= {"mem_limit": spec.memory_limit, "memswap_limit": spec.memory_limit}
    if spec.server.is_on_nvidia:
        options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return options


def listener_options(spec: EndpointSpec, settings: Settings) -> Document:
    """Return the arguments of `containers.create` for the listener, without its
    network.
    """
    host = spec.server.host.strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    port = spec.server.port
    return {
        "image": spec.container.image_for(spec.server),
        "entrypoint": ["onnxserve", "hold-socket"],
        "command": [f"{HOME_FOLDER}/listener", str(port)],
        "name": listener_name(spec.name),
        "labels": _labels(spec, settings),
        "ports": {f"{port}/tcp": (host, port)},
        "mounts": [Mount(HOME_FOLDER, volume_name(spec.name))],
        "healthcheck": {"test": ["NONE"]},
        "mem_limit": _LISTENER_MEMORY,
        "pids_limit": 32,
        "restart_policy": {"Name": "unless-stopped"},
        **_hardened(),
    }


def make_folder(folder: Path, mode: int = 0o700) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    share(folder)


def share(path: Path) -> None:
    """Give the group the owner's rights on a file or folder, because root's containers
    run in the owner's group.
    """
    mode = path.stat().st_mode
    if os.getuid() == 0 and mode & 0o070 != (mode & 0o700) >> 3:
        path.chmod(mode | (mode & 0o700) >> 3)


def check_registry(uri: str, is_host: bool) -> None:
    """Raise InvalidConfig if a container (with `is_host`: on the host's network) cannot
    reach the registry at `uri`.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme or "file"
    if parts.scheme not in ("http", "https") and not uri.startswith("databricks"):
        raise InvalidConfig(
            f"the registry {scheme}:… is a file of this machine, which a "
            "container cannot read: start `mlflow server` on it, and set MLFLOW_TRACKING_URI to "
            "the server's address"
        )
    if not is_host and is_loopback(parts.hostname or ""):
        raise InvalidConfig(
            f"containers cannot reach {uri}, this machine's loopback: set -C "
            "container.network=host; or let `mlflow server --host` listen on docker0's address "
            "(172.17.0.1), and set MLFLOW_TRACKING_URI to it"
        )


def end_of(container: Container) -> str:
    """Return the reason why a container has ended, as a clause without a subject."""
    state = container.attrs["State"]
    limit = container.attrs["HostConfig"]["Memory"]
    if state["OOMKilled"]:
        return f"is out of memory: set -C container.memory_bytes=… to more than {limit:,} bytes"
    if state["ExitCode"] in (126, 127):
        return "has no command `onnxserve`: set -C container.image=… to an onnxserve image"
    if state["ExitCode"] == _KILLED and not state["Restarting"]:
        return f"was killed (exit status {_KILLED})"  # The log does not explain a kill.
    lines = [
        line.strip()
        for line in container.logs(tail=_LAST_LINES).decode(errors="replace").splitlines()
    ]
    words = error_line([line for line in lines if line]) or state["Error"]
    again = " and is restarted repeatedly" if state["Restarting"] else ""
    ended = f"has ended with exit status {state['ExitCode']}{again}"
    return f"{ended}: {words}" if words else ended


@contextmanager
def docker_errors(spec: EndpointSpec | None = None) -> Iterator[None]:
    """Raise an error of this package for each error of Docker within the block.

    `spec` is the endpoint whose container is started; None if no port can be in use.
    """
    try:
        yield
    except APIError as error:
        reported = explanation(error)
        network = re.search(r"network (\S+) not found", reported)
        converted: OnnxserveError
        if spec is not None and re.search(_PORT_IN_USE, reported):
            converted = InvalidConfig(
                f"port {spec.server.port} on {spec.server.host} is in use: set another port with "
                "-C server.port=…"
            )
        elif "is already in use by container" in reported:
            converted = AlreadyExists(f"another container has the name: {reported}")
        elif "Range of CPUs" in reported:
            converted = InvalidConfig(f"container.cpus: {reported}")
        elif network:
            converted = InvalidConfig(
                f"container.network: the Docker network {network[1]} does not exist"
            )
        elif "could not select device driver" in reported:
            converted = InvalidConfig(
                "the server computes on a GPU, but the NVIDIA container toolkit is not installed "
                "in this engine"
            )
        elif "bind source path does not exist" in reported:
            converted = InvalidConfig(
                f"the Docker engine cannot access a folder of this machine: {reported}"
            )
        else:
            converted = DeploymentFailed(f"Docker reports: {reported}")
        raise converted from None
    except (DockerException, requests.RequestException) as error:
        raise DeploymentFailed(f"Docker does not answer: {error}") from None


def explanation(error: APIError) -> str:
    return one_line(error.explanation or error)


def _labels(spec: EndpointSpec, settings: Settings) -> dict[str, str]:
    network = spec.container.network or NETWORK
    address = f"{spec.server.host}:{spec.server.port}@{network}"
    return {ENDPOINT: spec.name, HOME: str(settings.home_path), ADDRESS: address}


def _hardened() -> Document:
    """Return the options that limit the rights of every container."""
    user = os.getuid() or USER  # The container does not run as root.
    return {
        "user": f"{user}:{os.getgid()}",
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
    }
