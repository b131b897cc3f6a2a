"""Deployments in containers of this machine's Docker engine.

`NAME` is the server. Its state folder is the host's, mounted at the same path, so that a change of spec needs no other
container, and whoever reads state folders reads this one. `NAME-listener` has the published port and the listening
socket, which servers get from it (`server/listener.py`). So a container of another image starts beside the one that
serves, is awaited, accepts from the same socket, and takes its name; then the earlier one finishes its requests. With
`container.network: host` there is no listener, and a server is replaced with a gap.

    HOME/docker/NAME/SLOT     the state folder of one server; the next one has another
    HOME/docker/NAME/cache    the models that they have fetched
    HOME/deployments/NAME     a link to the state folder of the server that counts
    volume onnxserve-NAME     the Unix socket by which the listening socket is handed over
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, Mount

from mlflow_deploy_plugin.deployments.backends import Observation
from mlflow_deploy_plugin.deployments.backends.local import (
    EMPTY,
    STARTING,
    STOP_MARGIN_SECONDS,
    STOPPED,
    PreviousState,
    check_port,
    lock_path,
    read_applied_spec,
    served_spec,
    server_state,
    server_url,
    state_dir,
    wait_until_served,
)
from mlflow_deploy_plugin.deployments.backends.supervisor import error_line, server_environment
from mlflow_deploy_plugin.deployments.backends.targets import Progress
from mlflow_deploy_plugin.errors import AlreadyExists, DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.server import MASK_KEY
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, ServerSpec, dump_spec
from mlflow_deploy_plugin.statedir import (
    AGENT,
    CONTROL,
    FOLLOWED,
    LOOK,
    SERVER,
    SPEC,
    SPOOL,
    AgentState,
    ServerState,
    is_locked,
    read_state,
    write_atomically,
)

_ENDPOINT, _HOME, _SLOT = "onnxserve.endpoint", "onnxserve.home", "onnxserve.slot"
_DIGEST, _ADDRESS = "onnxserve.digest", "onnxserve.address"
_NETWORK = "onnxserve"
"""The network of the listeners, on which containers do not reach one another."""
_USER_ID = 10001
"""The user of root's containers, the image's own. It shares root's group, as it does on OpenShift."""
_SHARED = "/var/lib/onnxserve"
"""The folder of the image that every user may write: the volume with the socket takes its place."""
_PASSED_ON = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "ONNXSERVE_")
_KEPT = (FOLLOWED, CONTROL, MASK_KEY)
"""The files of a state folder that the server of the next one goes on with."""
_LAST_LINES = 100
_LISTENER_MEMORY = 64 * 1024**2


@dataclass(frozen=True)
class DockerBackend:
    """Servers in containers of the engine that DOCKER_HOST names, else of this machine's own."""

    settings: Settings

    def apply(self, spec: EndpointSpec, progress: Progress) -> None:
        """Serve `spec`, whose port is set, and wait until every worker does.

        The running server applies a change of variants or capture itself. Another image, or a change of the parts
        `server` and `container`, brings another container, which takes over when it is ready.

        Raises:
            InvalidConfig: port, image or registry cannot be had; the server that runs goes on.
            AlreadyExists: another container has the name.
            DeploymentFailed: it did not become ready, and its container is removed; or Docker does not answer.
        """
        begun = time.monotonic()
        with _docker_errors(spec):
            self._settle(spec.name)
            image = self._image(spec, progress)
            _make_folder(self._folder(spec.name))
            options, digest = self._server_options(spec, image.id)
            server = self._server(spec.name)
            if server is not None and server.status == "running" and server.labels[_DIGEST] == digest:
                self._start_listener(spec)
                folder = state_dir(spec.name, self.settings)
                before = PreviousState(served_spec(folder), read_state(folder / AGENT, AgentState))
                write_atomically(folder / SPEC, dump_spec(spec).encode())
                self._wait(spec, folder, server, before, progress)
            else:
                self._replace(spec, server, options, progress)
        progress(f"{spec.name}: ready at {server_url(spec.server)} after {time.monotonic() - begun:.1f} s")

    def observe(self, spec: EndpointSpec) -> Observation:
        """Return the state of the endpoint's server now."""
        if not spec.variants:
            return Observation("empty", EMPTY.format(name=spec.name))
        with _docker_errors(spec):
            server = self._server(spec.name)
            listener = self._get(_listener_name(spec.name))
            lines = self._last_lines(server) if server is not None and server.status != "running" else []
        name, folder = spec.name, state_dir(spec.name, self.settings)
        log = f"docker logs {server.name}" if server is not None else ""
        if server is None or server.status != "running":
            if is_locked(lock_path(name, self.settings)):
                return Observation("starting", STARTING, log=log)
            if (folder / STOPPED).exists():
                return Observation("stopped", f"`onnxserve start {name}` starts it", log=log)
            ended = f"its container {_end_of(server, lines)}" if server is not None else "its container is gone"
            return Observation("failed", f"{ended}; `onnxserve start {name}` brings it back", log=log)
        if spec.container.network != "host" and (listener is None or listener.status != "running"):
            reason = f"the container {_listener_name(name)}, which has its port, does not run"
            return Observation("failed", f"{reason}; `onnxserve start {name}` brings it back", log=log)
        written, agent = read_state(folder / SERVER, ServerState), read_state(folder / AGENT, AgentState)
        started = datetime.fromisoformat(server.attrs["State"]["StartedAt"][:19] + "+00:00").timestamp()
        if written is None or written.started_at < started - 1:  # the file is of the run before
            return Observation("starting", STARTING, log=log)
        applied = read_applied_spec(folder, spec, _lives)
        state, reason = server_state(written, applied)
        return Observation(
            state=state,
            reason=reason,
            url=server_url(spec.server),
            pid=server.attrs["State"]["Pid"],
            started_at=written.started_at,
            restarts=written.restarts + server.attrs["RestartCount"],
            wanted=applied.wanted,
            workers=applied.workers,
            errors=applied.errors,
            refused=agent.refused if agent is not None else (),
            registry_error=agent.error if agent is not None else "",
            shipping_error=agent.shipping.error if agent is not None else "",
            log=log,
        )

    def stop(self, name: str) -> None:
        """Stop the containers; requests in flight are finished, or killed when their time is up."""
        with _docker_errors():
            for server in self._servers(name):
                self._stop(server)
            if (listener := self._get(_listener_name(name))) is not None:
                listener.stop()
        if (folder := state_dir(name, self.settings)).exists():
            (folder / STOPPED).touch()

    def remove(self, name: str) -> None:
        """Remove containers, volume and folders; shipped rows stay in the inference log."""
        with _docker_errors():
            for server in self._servers(name):
                self._stop(server)
                server.remove(v=True, force=True)
            if (listener := self._get(_listener_name(name))) is not None:
                listener.remove(v=True, force=True)
            with suppress(NotFound):
                self._engine.volumes.get(_volume(name)).remove()
            with suppress(APIError):  # others are on it, or there is none
                self._engine.networks.get(_NETWORK).remove()
        state_dir(name, self.settings).unlink(missing_ok=True)
        shutil.rmtree(self._folder(name), ignore_errors=True)

    def is_running(self, name: str) -> bool:
        """Return True if the endpoint's server lives, ready or not."""
        with _docker_errors():
            server = self._server(name)
        return server is not None and server.status in ("running", "restarting")

    def poll_registry(self, name: str) -> None:
        """Make the endpoint's agent ask the registry at once instead of at its next poll."""
        with suppress(OSError):  # it has no server: the next poll comes anyway
            (state_dir(name, self.settings) / LOOK).touch()

    def reached(self, spec: EndpointSpec) -> AbstractContextManager[str]:
        """Yield the address of the published port."""
        return nullcontext(server_url(spec.server))

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last lines of the server's log, and with `follow` those to come until its container ends."""
        with _docker_errors():
            if (server := self._server(name)) is None:
                return
            part = b""
            for piece in server.logs(tail=lines, follow=follow, stream=True):
                *whole, part = (part + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)

    # containers

    @cached_property
    def _engine(self) -> Any:
        try:
            return docker.from_env()
        except DockerException as error:
            where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
            hint = "start it, or name another by DOCKER_HOST"
            if "PermissionError" in str(error):
                hint = "this user may not; its group `docker` may"
            raise DeploymentFailed(f"no Docker engine answers at {where}: {hint}") from None

    def _folder(self, name: str) -> Path:
        return self.settings.home_path / "docker" / name

    def _slot(self, name: str) -> str:
        """Return the slot of the server that counts; empty before the first is ready."""
        link = state_dir(name, self.settings)
        return link.readlink().name if link.is_symlink() else ""

    def _servers(self, name: str) -> list[Any]:
        labels = [f"{_ENDPOINT}={name}", f"{_HOME}={self.settings.home_path}", _SLOT]
        found: list[Any] = self._engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return found

    def _server(self, name: str) -> Any:
        """Return the container that counts; None if there is none."""
        slot = self._slot(name)
        return next((one for one in self._servers(name) if one.labels[_SLOT] == slot), None)

    def _get(self, container: str) -> Any:
        """Return the container of this name; None if there is none.

        Raises:
            AlreadyExists: it is not ours.
        """
        try:
            found = self._engine.containers.get(container)
        except NotFound:
            return None
        if found.labels.get(_HOME) != str(self.settings.home_path):
            whose = f"of ONNXSERVE_HOME={found.labels[_HOME]}" if _HOME in found.labels else "and not ours"
            raise AlreadyExists(
                f"a container {container!r} is there already, {whose}: choose another name, or `docker rm {container}`"
            )
        return found

    def _image(self, spec: EndpointSpec, progress: Progress) -> Any:
        """Return the image; pull it if it is not here and belongs to a registry.

        Raises:
            InvalidConfig: it cannot be had.
        """
        name = spec.container.image_for(spec.server.device)
        try:
            return self._engine.images.get(name)
        except ImageNotFound:
            if "/" not in name:  # a stranger may have the name at Docker Hub
                raise InvalidConfig(
                    f"there is no image {name!r} here: `make images` makes onnxserve:cpu and onnxserve:gpu; another is "
                    "named by -C container.image=…"
                ) from None
        progress(f"{spec.name}: pulling {name}")
        try:
            return self._engine.images.pull(*name.partition("@")[0].rsplit(":", 1) if ":" in name else (name, "latest"))
        except APIError as error:
            raise InvalidConfig(f"the image {name!r} is not here, and cannot be pulled: {_said(error)}") from None

    def _server_options(self, spec: EndpointSpec, image: str) -> tuple[dict[str, Any], str]:
        """Return how the server's container is made, but for its slot, and a digest of what needs another one.

        Raises:
            InvalidConfig: it would not reach the registry, or not read a file that it needs.
        """
        wanted, is_host = spec.container, spec.container.network == "host"
        if spec.server.grpc_port is not None and not is_host:
            raise InvalidConfig("server.grpc_port of a container needs -C container.network=host")
        own = {**wanted.environment, **{name: _secret(name, path) for name, path in wanted.secrets.items()}}
        options: dict[str, Any] = {
            "image": wanted.image_for(spec.server.device),
            "entrypoint": ["onnxserve"],
            "network": wanted.network or "bridge",
            "mounts": [
                Mount(path, path, "bind", read_only=fixed) for path, fixed in sorted(self._mounts(spec).items())
            ],
            "pids_limit": wanted.pids,
            **_hardened(),
        }
        if not is_host:
            options["mounts"].append(Mount(_SHARED, _volume(spec.name)))
        if wanted.cpus is not None:
            options["nano_cpus"] = int(wanted.cpus * 1e9)
        if wanted.memory_bytes is not None:
            options |= {"mem_limit": wanted.memory_bytes, "memswap_limit": wanted.memory_bytes}
        if spec.server.device != "cpu":
            options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        if spec.server.certfile is not None:
            options["healthcheck"] = {"test": ["NONE"]}  # the image's own speaks http
        parts = [image, options, own, spec.server.model_dump(mode="json"), wanted.restart]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        labels = {**self._labels(spec), _DIGEST: digest}
        return {**options, "environment": {**self._environment(spec), **own}, "labels": labels}, digest

    def _mounts(self, spec: EndpointSpec) -> dict[str, bool]:
        """Return the paths of this machine that the server needs, and whether it only reads them."""
        files = [*_local_models(spec), spec.server.certfile, spec.server.keyfile]
        if spec.server.api_keys:
            if self.settings.keys_file is None:
                raise InvalidConfig(
                    "server.api_keys of a container takes the keys from a file: `onnxserve keys export > keys.json`, "
                    "and ONNXSERVE_KEYS_FILE=keys.json for this command"
                )
            files.append(str(self.settings.keys_file))
        mounts = {str(Path(path).absolute()): True for path in files if path is not None}
        if ":" not in (log := self.settings.inference_log):
            for folder in (Path(log), *Path(log).glob("_*")):
                _make_folder(folder)
            mounts[log] = False
        return {**mounts, str(self._folder(spec.name)): False}

    def _environment(self, spec: EndpointSpec) -> dict[str, str]:
        """Return what the server takes from the environment of this process, and what is its own."""
        found = server_environment(self._folder(spec.name), self.settings)
        environment = {key: value for key, value in found.items() if key.startswith(_PASSED_ON)}
        environment.pop("ONNXSERVE_STORE_URI", None)
        if len(_local_models(spec)) < len(spec.variants):
            check_registry(environment["MLFLOW_REGISTRY_URI"], spec.container.network == "host")
        if self.settings.keys_file is not None:
            environment["ONNXSERVE_KEYS_FILE"] = str(self.settings.keys_file.absolute())
        if spec.container.network != "host":
            environment["ONNXSERVE_LISTENER"] = f"{_SHARED}/listener"
        return {
            **environment,
            "ONNXSERVE_HOME": str(self._folder(spec.name)),
            "ONNXSERVE_HOST": spec.server.host,
            "ONNXSERVE_PORT": str(spec.server.port),
        }

    def _labels(self, spec: EndpointSpec) -> dict[str, str]:
        address = f"{spec.server.host}:{spec.server.port}@{spec.container.network or _NETWORK}"
        return {_ENDPOINT: spec.name, _HOME: str(self.settings.home_path), _ADDRESS: address}

    def _replace(self, spec: EndpointSpec, server: Any, options: dict[str, Any], progress: Progress) -> None:
        """Start another server, and let it take the place of `server` once it is ready."""
        name, labels = spec.name, options["labels"]
        self._get(_container_name(name))  # a stranger's container is no reason to stop ours
        takes_over = server is not None and server.status == "running"
        if server is None or server.labels[_ADDRESS] != labels[_ADDRESS]:
            listener = self._get(_listener_name(name))
            if listener is None or listener.status != "running" or listener.labels[_ADDRESS] != labels[_ADDRESS]:
                check_port(spec.server.host, spec.server.port or 0)  # an error is raised before anything is stopped
            takes_over = False
        if spec.container.network == "host":
            takes_over = False
        if server is not None and not takes_over:
            progress(f"{name}: ending the container that serves, which cannot run beside the new one")
            self._stop(server)
            server.remove(v=True, force=True)
        slot = self._slot(name) or "1"
        earlier, folder = self._folder(name) / slot, self._folder(name) / slot
        if takes_over:
            slot = str(int(slot) + 1)
            folder = self._folder(name) / slot
            shutil.rmtree(folder, ignore_errors=True)
        _make_folder(folder)
        for left in (SERVER, AGENT, STOPPED):
            (folder / left).unlink(missing_ok=True)
        shutil.rmtree(folder / "workers", ignore_errors=True)
        if takes_over:
            for file in _KEPT:
                with suppress(FileNotFoundError):
                    shutil.copy(earlier / file, folder / file)
                    _share(folder / file)
        write_atomically(folder / SPEC, dump_spec(spec).encode())
        self._start_listener(spec)
        progress(f"{name}: starting a container of {spec.container.image_for(spec.server.device)}")
        new = self._engine.containers.create(
            **{**options, "labels": {**labels, _SLOT: slot}},
            name=f"{_container_name(name)}.{slot}",
            command=["serve", "--spec", str(folder / SPEC), "--state-dir", str(folder)],
        )
        try:
            new.start()
            self._wait(spec, folder, new, PreviousState(None, None), progress)
            new.update(restart_policy={"Name": spec.container.restart})  # until now a crash was to be seen
        except BaseException:
            new.remove(v=True, force=True)
            if takes_over:
                shutil.rmtree(folder, ignore_errors=True)
            elif (listener := self._get(_listener_name(name))) is not None:  # it would keep the port to itself
                listener.remove(v=True, force=True)
            raise
        link = state_dir(name, self.settings)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.with_name(f".{name}.link").symlink_to(folder)
        link.with_name(f".{name}.link").replace(link)
        self._settle(name)

    def _settle(self, name: str) -> None:
        """End the servers that do not count, also those that a crash has left, and give the one that does its name."""
        slot = self._slot(name)
        for server in self._servers(name):
            if server.labels[_SLOT] == slot:
                continue
            self._stop(server)
            server.remove(v=True, force=True)
            folder = self._folder(name) / server.labels[_SLOT]
            for segment in (folder / SPOOL).glob("*.seg"):  # the log took nothing: the next agent ships it
                _make_folder(self._folder(name) / slot / SPOOL)
                segment.replace(self._folder(name) / slot / SPOOL / segment.name)
            shutil.rmtree(folder, ignore_errors=True)
        server = self._server(name)
        if server is not None and server.name != _container_name(name):
            server.rename(_container_name(name))

    def _start_listener(self, spec: EndpointSpec) -> None:
        """Have the container that holds the port run; none with `container.network: host`."""
        name = _listener_name(spec.name)
        listener = self._get(name)
        labels, network = self._labels(spec), spec.container.network or _NETWORK
        if listener is not None and (network == "host" or listener.labels[_ADDRESS] != labels[_ADDRESS]):
            listener.remove(v=True, force=True)
            listener = None
        if network == "host":
            return
        if listener is None:
            if network == _NETWORK and not self._engine.networks.list(names=[f"^{_NETWORK}$"]):
                with suppress(APIError):  # another process has just made it
                    options = {"com.docker.network.bridge.enable_icc": "false"}
                    self._engine.networks.create(_NETWORK, driver="bridge", options=options, check_duplicate=True)
            host, port = spec.server.host.strip("[]"), spec.server.port
            listener = self._engine.containers.create(
                spec.container.image_for(spec.server.device),
                ["-m", "mlflow_deploy_plugin.server.listener", f"{_SHARED}/listener", str(port)],
                name=name,
                entrypoint="python",
                labels=labels,
                network=network,
                ports={f"{port}/tcp": ("127.0.0.1" if host == "localhost" else host, port)},
                mounts=[Mount(_SHARED, _volume(spec.name))],
                healthcheck={"test": ["NONE"]},
                mem_limit=_LISTENER_MEMORY,
                pids_limit=32,
                restart_policy={"Name": "unless-stopped"},
                **_hardened(),
            )
            if spec.container.network:
                joined = self._engine.networks.get(network)
                joined.disconnect(listener)
                joined.connect(listener, aliases=[spec.name])
        if listener.status != "running":
            try:
                listener.start()
            except APIError:
                listener.remove(v=True, force=True)
                raise

    def _wait(self, spec: EndpointSpec, folder: Path, server: Any, before: PreviousState, progress: Progress) -> None:
        seconds = self.settings.ready_timeout_seconds
        wait_until_served(spec, folder, before, partial(self._why_ended, server), seconds, progress, _lives)

    def _why_ended(self, server: Any) -> str:
        """Return why the container serves no more; empty while it does."""
        server.reload()
        if server.status in ("created", "running") and not server.attrs["State"]["OOMKilled"]:
            return ""
        return f"its container {_end_of(server, self._last_lines(server))}"

    def _last_lines(self, server: Any) -> list[str]:
        lines: list[str] = server.logs(tail=_LAST_LINES).decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def _stop(self, server: Any) -> None:
        """Let a server finish its requests and ship its rows; kill it when its time is up."""
        if server.status not in ("running", "restarting"):
            return
        spec = served_spec(self._folder(server.labels[_ENDPOINT]) / server.labels[_SLOT])
        of_server = spec.server if spec is not None else ServerSpec()
        server.stop(timeout=of_server.graceful_timeout_seconds + STOP_MARGIN_SECONDS)


def _local_models(spec: EndpointSpec) -> list[str]:
    paths = [variant.model.removeprefix("file://") for variant in spec.variants.values()]
    return [path for path in paths if path.startswith("/")]


def _volume(name: str) -> str:
    return f"onnxserve-{name}"


def _container_name(name: str) -> str:
    return name if len(name) > 1 else f"onnxserve-{name}"  # Docker wants two characters


def _listener_name(name: str) -> str:
    return f"{name}-listener"


def _hardened() -> dict[str, Any]:
    return {
        "user": f"{os.getuid() or _USER_ID}:{os.getgid()}",
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
    }


def _make_folder(folder: Path) -> None:
    """Make a folder that this user's containers may write."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _share(folder)


def _share(path: Path) -> None:
    """Let root's containers, which have his group, do with a file or folder what he may."""
    mode = path.stat().st_mode
    if os.getuid() == 0 and mode & 0o070 != (mode & 0o700) >> 3:
        path.chmod(mode | (mode & 0o700) >> 3)


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).expanduser().read_text().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise InvalidConfig(f"container.secrets.{name}: the file {path} cannot be read: {why}") from None


def check_registry(uri: str, is_host: bool) -> None:
    """Raise InvalidConfig if a container cannot reach the registry of this URI."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") and not uri.startswith("databricks"):
        raise InvalidConfig(
            f"the registry {parts.scheme or 'file'}:… is a file of this machine, and no container reads it: start "
            "`mlflow server` on it, and name that by MLFLOW_TRACKING_URI"
        )
    if not is_host and re.fullmatch(r"localhost|127\..*|::1", parts.hostname or ""):
        raise InvalidConfig(
            f"no container reaches {uri}, this machine's loopback: say -C container.network=host; or let "
            "`mlflow server --host` listen on docker0's address (172.17.0.1), and name that by MLFLOW_TRACKING_URI"
        )


def _end_of(server: Any, lines: list[str]) -> str:
    """Return how the container has ended, with its last words."""
    state, limit = server.attrs["State"], server.attrs["HostConfig"]["Memory"]
    if state["OOMKilled"]:
        return f"is out of memory: -C container.memory_bytes=… is to be more than {limit:,} bytes"
    again = " and is started again and again" if state["Restarting"] else ""
    words = error_line(lines) or state["Error"]
    if state["ExitCode"] in (126, 127):
        words = "it has no command `onnxserve`; -C container.image=… is to be one of onnxserve's images"
    return f"has ended with exit status {state['ExitCode']}{again}" + (f": {words}" if words else "")


def _lives(_pid: int) -> bool:
    """Return True: the ids are the container's, whose gunicorn removes the files of dead workers."""
    return True


def _said(error: APIError) -> str:
    return " ".join(str(error.explanation or error).split())


@contextmanager
def _docker_errors(spec: EndpointSpec | None = None) -> Iterator[None]:
    """Raise our errors for Docker's."""
    try:
        yield
    except APIError as error:
        said = _said(error)
        if spec is not None and re.search(r"port is already allocated|address already in use", said):
            raise InvalidConfig(
                f"port {spec.server.port} on {spec.server.host} is in use: choose another by -C server.port=…"
            ) from None
        if "is already in use by container" in said:
            raise AlreadyExists(f"another container has the name: {said}") from None
        if spec is not None and (missing := re.search(r"network (\S+) not found", said)):
            raise InvalidConfig(f"container.network: there is no Docker network {missing[1]}") from None
        if "bind source path does not exist" in said:
            raise InvalidConfig(
                f"the Docker engine does not see this machine's folders, or they are gone: {said}"
            ) from None
        raise DeploymentFailed(f"Docker says: {said}") from None
    except (DockerException, requests.RequestException) as error:
        raise DeploymentFailed(f"Docker does not answer: {error}") from None
