"""An endpoint as a systemd unit: the server with its own user id and minimal rights, and the spec that it serves.

systemd reads secrets, their files and those of TLS, whose folders may be root's, and passes them on as credentials
(systemd.exec(5)).
"""

import re
from collections.abc import Mapping

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.manifests.served import (
    STARTUP_SECONDS,
    TLS_FILES,
    Place,
    environment_of,
    http_port,
    local_files,
    machine_name,
    refuse_strangers,
    served_spec,
)
from mlflow_deploy_plugin.spec import EndpointSpec, dump_spec, is_loopback

PROGRAM = "/opt/onnxserve/bin/onnxserve"
"""systemd needs an absolute path; the images have the same virtual environment."""
_FIRST_FREE_PORT = 1024
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@+=,-]*")

_UNIT = """\
[Unit]
Description=onnxserve: the endpoint {name}
Wants=network-online.target
After=network-online.target
# a registry that is away when the machine starts comes back: it is tried again, without end
StartLimitIntervalSec=0

[Service]
# started once every model answers; one that does not within the time is started anew
Type=notify
TimeoutStartSec={start_seconds}
ExecStart={program} serve --spec /etc/onnxserve/{name}.yaml --state-dir %S/{unit}/server
Restart=on-failure
RestartSec=5
# SIGTERM goes to the supervisor alone, which ends the requests in flight and ships what was captured
KillMode=mixed
TimeoutStopSec={stop_seconds}
# a worker that is killed for memory is replaced, and the others go on
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
"""


def render(spec: EndpointSpec, place: Place) -> Mapping[str, str]:
    """Return the unit and the served spec, by the paths where systemd and the unit look for them.

    Raises InvalidConfig if a path is relative or cannot be quoted in a unit, a field is only for containers, or the
    endpoint would be open to strangers.
    """
    if spec.container.image is not None:
        raise InvalidConfig(f"container.image: a unit runs {PROGRAM} of its machine, and no image; leave it out")
    if spec.container.network not in (None, "host"):
        raise InvalidConfig("container.network: a unit has the network of its machine; leave it out")
    if not is_loopback(spec.server.host):
        refuse_strangers(spec, f"server.host {spec.server.host}")
    name, container, server = machine_name(spec, place), spec.container, spec.server
    unit = f"onnxserve-{name}"
    served = served_spec(spec, server.host)
    credentials = {name: _plain(path) for name, path in container.secrets.items()}
    files = [_plain(path) for path in local_files(spec)]
    shown, given = f"/run/credentials/{unit}.service", dict(container.secret_files)
    environment = environment_of(spec, place) | {name: f"{shown}/{name}" for name in given}
    tls = {field: path for field in TLS_FILES if (path := getattr(server, field)) is not None}
    given |= {TLS_FILES[field]: path for field, path in tls.items()}
    update = {field: f"{shown}/{TLS_FILES[field]}" for field in tls}
    served = served.model_copy(update={"server": served.server.model_copy(update=update)})
    for path in given.values():
        files.remove(path)
    credentials |= given
    home = f"%S/{unit}"
    lines = {
        "limits": [
            *([f"CPUQuota={round(container.cpus * 100)}%"] if container.cpus is not None else []),
            *([f"MemoryMax={container.memory_bytes}"] if container.memory_bytes is not None else []),
            f"TasksMax={container.pids}",
        ],
        "environment": [
            f"Environment=HOME={home} ONNXSERVE_HOME={home}",
            *(f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()),
            *(["Environment=ONNXSERVE_SECRETS=%d"] if container.secrets else []),
            *(f"LoadCredential={name}:{path}" for name, path in credentials.items()),
        ],
        "files": ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={path}" for path in files)],
        "devices": ["PrivateDevices=yes"]
        if server.device == "cpu"
        else ["DevicePolicy=closed", "DeviceAllow=char-nvidia* rw"],
    }
    is_low = min(http_port(spec), server.grpc_port or _FIRST_FREE_PORT) < _FIRST_FREE_PORT
    text = _UNIT.format(
        name=name,
        unit=unit,
        program=PROGRAM,
        start_seconds=STARTUP_SECONDS,
        stop_seconds=server.stop_seconds,
        capabilities="CAP_NET_BIND_SERVICE" if is_low else "",
        **{name: "\n".join(found) for name, found in lines.items()},
    )
    return {f"etc/systemd/system/{unit}.service": text, f"etc/onnxserve/{name}.yaml": dump_spec(served)}


def _quoted(text: str) -> str:
    """Return a text in the quotes of systemd.syntax(7), with `%` escaped, so that it is not a specifier."""
    special = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "%": "%%"}  # a \r also ends a line
    escaped = "".join(special.get(one, one) for one in text)
    return f'"{escaped}"'


def _plain(path: str) -> str:
    """Return the path, or raise InvalidConfig if it needs quoting that differs between versions of systemd."""
    if not _PLAIN_PATH.fullmatch(path):
        raise InvalidConfig(
            f"{path!r} cannot stand in a unit: an absolute path of letters, digits and _./@+=,- is wanted"
        )
    return path
