"""An endpoint as a spec and a systemd unit, which runs the server with a dedicated user
id and minimal rights.

systemd reads secrets, secret files and TLS files, which may be readable only by root,
and passes them to the server as credentials (systemd.exec(5)).
"""

import re
from collections.abc import Iterator, Mapping

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import ContainerSpec, EndpointSpec
from mlflow_deploy_plugin.core.spec.types import is_loopback
from mlflow_deploy_plugin.ship.manifests.served import (
    STARTUP_SECONDS,
    TLS_FILES,
    Place,
    environment_of,
    http_port,
    local_files,
    machine_name,
    refuse_strangers,
    served_spec,
    tls_files,
    with_tls_folder,
)

PROGRAM = "/opt/onnxserve/bin/onnxserve"
"""The command of the server. systemd needs an absolute path, and the images have it at
the same path.
"""
_FIRST_FREE_PORT = 1024
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@+=,-]*")

_UNIT = """\
[Unit]
Description=onnxserve: the endpoint {name}
Wants=network-online.target
After=network-online.target
# Retry without a limit, because the registry may be unavailable when the machine starts.
StartLimitIntervalSec=0

[Service]
# The unit is started when every model answers. If a model does not answer in time, the unit is restarted.
Type=notify
TimeoutStartSec={start_seconds}
ExecStart={program} serve --spec /etc/onnxserve/{name}.yaml --state-dir %S/{unit}/server
Restart=on-failure
RestartSec=5
# SIGTERM is sent only to the supervisor, which completes open requests and ships captured rows.
KillMode=mixed
TimeoutStopSec={stop_seconds}
# If a worker is killed for memory, it is replaced, and the other workers continue.
OOMPolicy=continue
LimitNOFILE=65536
{limits}

DynamicUser=yes
StateDirectory={unit}
StateDirectoryMode=0700
UMask=0077
{environment}

NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
ProtectSystem=strict
{files}
PrivateTmp=yes
{devices}
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""  # noqa: E501


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return path → text of the unit and of the served spec. systemd and the unit
    expect the files at these paths.

    Raises InvalidConfig if a path is relative or cannot be quoted in a unit, a field of
    the spec is only for containers, or the endpoint would be open without auth.
    """
    _check(spec)
    server = spec.server
    name = machine_name(spec, place)
    unit = f"onnxserve-{name}"
    folder = f"/run/credentials/{unit}.service"
    served = with_tls_folder(served_spec(spec, server.host), folder)
    lines = {
        "limits": [*_limits(spec.container)],
        "environment": [*_environment(spec, place, unit, folder)],
        "files": ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={path}" for path in _files(spec))],
        "devices": ["PrivateDevices=yes"],
    }
    if server.is_on_nvidia:
        lines["devices"] = ["DevicePolicy=closed", "DeviceAllow=char-nvidia* rw"]
    ports = filter(None, (http_port(spec), server.grpc_port, server.metrics_port))
    is_low = min(ports) < _FIRST_FREE_PORT
    text = _UNIT.format(
        name=name,
        unit=unit,
        program=PROGRAM,
        start_seconds=STARTUP_SECONDS,
        stop_seconds=server.stop_seconds,
        capabilities="CAP_NET_BIND_SERVICE" if is_low else "",
        **{name: "\n".join(entries) for name, entries in lines.items()},
    )
    return {
        f"etc/systemd/system/{unit}.service": text,
        f"etc/onnxserve/{name}.yaml": dump_spec(served),
    }


def _check(spec: EndpointSpec) -> None:
    """Raise InvalidConfig if a field is only for containers, or the endpoint would be
    open without auth.
    """
    if spec.container.image is not None:
        raise InvalidConfig(
            f"container.image: a unit runs {PROGRAM} of its machine, not an image; remove this "
            "field",
        )
    if spec.container.network not in (None, "host"):
        raise InvalidConfig(
            "container.network: a unit uses the network of its machine; remove this field",
        )
    if not is_loopback(spec.server.host):
        refuse_strangers(spec, f"server.host {spec.server.host}")


def _limits(container: ContainerSpec) -> Iterator[str]:
    if container.cpus is not None:
        yield f"CPUQuota={round(container.cpus * 100)}%"
    if container.memory_bytes is not None:
        yield f"MemoryMax={container.memory_bytes}"
    yield f"TasksMax={container.pids}"


def _environment(
    spec: EndpointSpec,
    place: Place,
    unit: str,
    folder: str,
) -> Iterator[str]:
    """Yield the lines of the variables, and of the credentials in `folder`."""
    container = spec.container
    yield f"Environment=HOME=%S/{unit} ONNXSERVE_HOME=%S/{unit}"
    environment = environment_of(spec, place)
    environment |= {name: f"{folder}/{name}" for name in container.secret_files}
    for name, value in environment.items():
        assignment = f"{name}={value}"
        yield f"Environment={_quoted(assignment)}"
    if container.secrets:
        yield "Environment=ONNXSERVE_SECRETS=%d"
    credentials = {name: _plain(path) for name, path in container.secrets.items()}
    for name, path in (credentials | _credential_files(spec)).items():
        yield f"LoadCredential={name}:{path}"


def _credential_files(spec: EndpointSpec) -> dict[str, str]:
    """Return the files that systemd passes to the server: credential → path."""
    tls = {TLS_FILES[field]: path for field, path in tls_files(spec).items()}
    return {**spec.container.secret_files, **tls}


def _files(spec: EndpointSpec) -> list[str]:
    """Return the paths that the server itself reads."""
    paths = [_plain(path) for path in local_files(spec)]
    for path in _credential_files(spec).values():
        paths.remove(path)
    return paths


def _quoted(text: str) -> str:
    """Return a text in the quotes of systemd.syntax(7). `%` is escaped, because it
    begins a specifier.
    """
    # systemd also ends a line at \r.
    special = {
        "\\": "\\\\",
        '"': '\\"',
        "\n": "\\n",
        "\r": "\\r",
        "%": "%%",
    }
    escaped = "".join(special.get(character, character) for character in text)
    return f'"{escaped}"'


def _plain(path: str) -> str:
    """Return the path. Raises InvalidConfig if the path needs quotes, because systemd
    versions differ in quoting.
    """
    if not _PLAIN_PATH.fullmatch(path):
        raise InvalidConfig(
            f"{path!r} is not allowed in a unit: an absolute path of letters, digits and _./@+=,- "
            "is expected",
        )
    return path
