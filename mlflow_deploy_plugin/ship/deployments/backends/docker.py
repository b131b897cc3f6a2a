"""Deployments in containers of this machine's Docker engine.

`NAME` is the server. Its state folder is mounted from the host at the same path, so
that other processes can read it and a change of the spec does not need a new container.
`NAME-listener` has the published port, and passes its listening socket to the servers
(`serve/listener.py`). A container with another image starts next to the serving
container, accepts from the same socket when it is ready, and takes over the name while
the old container completes its requests. With `container.network: host` there is no
listener, and replacing a server causes a short outage.

    HOME/docker/NAME/SLOT     the state folder of a server; a new server has a new slot
    HOME/docker/NAME/cache    the downloaded models
    HOME/deployments/NAME     a link to the state folder of the current server
    volume onnxserve-NAME     the Unix socket that passes the listening socket
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlsplit

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image

from mlflow_deploy_plugin.core.errors import AlreadyExists, DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.core.spec.document import dump_spec
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir import files
from mlflow_deploy_plugin.core.statedir.models import ServerState
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY
from mlflow_deploy_plugin.ship.deployments.backends import served_state
from mlflow_deploy_plugin.ship.deployments.backends.containers import (
    ADDRESS,
    DIGEST,
    ENDPOINT,
    HOME,
    NETWORK,
    SLOT,
    docker_errors,
    end_of,
    explanation,
    home_folder,
    listener_name,
    listener_options,
    make_folder,
    server_name,
    server_options,
    share,
    volume_name,
)
from mlflow_deploy_plugin.ship.deployments.backends.local import check_port
from mlflow_deploy_plugin.ship.deployments.backends.served_state import MachineBackend, ServedState
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation, Progress
from mlflow_deploy_plugin.ship.manifests.served import Document

_KEPT = (files.FOLLOWED, files.CONTROL, MASK_KEY)
"""The files of a state folder that are copied for the next server."""


@dataclass
class DockerBackend(MachineBackend):
    """Servers in containers of the Docker engine at DOCKER_HOST, by default this
    machine's engine.
    """

    _connected: docker.DockerClient | None = field(default=None, init=False)

    def lives(self, pid: int) -> bool:
        # The process ids are from the container, in which gunicorn removes the files of
        # dead workers.
        return True

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        """Serve `spec`, whose port is set. A change of the image, `server` or
        `container` needs a new container.

        The running server applies all other changes. Raises the errors of
        `Backend.apply`, and AlreadyExists if another container has this name.
        """
        with docker_errors(spec):
            self._settle(spec.name)
            name = spec.container.image_for(spec.server)
            image: Image | None = None
            try:
                image = self._engine.images.get(name)
            except ImageNotFound:
                if "/" not in name:  # Do not pull it: anyone may own this name at Docker Hub.
                    raise InvalidConfig(
                        f"there is no local image {name!r}: `make images` builds onnxserve:cpu and "
                        "onnxserve:gpu; set another image with -C container.image=…"
                    ) from None
            if image is None:
                progress(f"{spec.name}: pulling {name}")
                try:
                    image = self._engine.images.pull(name)
                except APIError as error:
                    raise InvalidConfig(
                        f"the image {name!r} is not local and cannot be pulled: "
                        f"{explanation(error)}"
                    ) from None
            make_folder(home_folder(spec.name, self.settings))
            options = server_options(spec, self.settings, image.id)
            server = self._server(spec.name)
            digest = options["labels"][DIGEST]
            if _is_running(server) and server.labels.get(DIGEST) == digest:
                self._start_listener(spec)
                folder = self.settings.state_dir(spec.name)
                before = self.state_before(folder)
                files.write_atomically(folder / files.SPEC, dump_spec(spec).encode())
                self._wait(spec, folder, server, before, progress)
            else:
                self._replace(spec, server, options, progress)
        return served_state.server_url(spec.server)

    def observe(self, spec: EndpointSpec) -> Observation:
        name = spec.name
        with docker_errors(spec):
            server = self._server(name)
            listener = self._listener(name)
            if _is_running(server):
                gone = ""
            elif server is not None:
                gone = f"its container {end_of(server)}"
            elif self._slot(name):
                gone = "its container is gone"
            else:
                gone = "the command that made it ended before it was ready"
        log = f"docker logs {server.name}" if server is not None else ""
        if server is None or gone:
            return self.observe_absent(name, gone, log)
        if spec.container.network != "host" and not _is_running(listener):
            reason = (
                f"the container {listener_name(name)}, which has its port, is not "
                f"running; `onnxserve start {name}` restarts it"
            )
            return Observation("failed", reason, log=log)
        folder = self.settings.state_dir(name)
        written = files.read_state(folder / files.SERVER, ServerState)
        state = server.attrs["State"]
        started_at = datetime.fromisoformat(f"{state['StartedAt'][:19]}+00:00").timestamp()
        # The file may be from an earlier start.
        if written is None or written.started_at < started_at - 1:
            return Observation("starting", served_state.STARTING, log=log)
        observation = self.observe_server(spec, folder, written, log)
        restarts = written.restarts + server.attrs["RestartCount"]
        return replace(observation, pid=state["Pid"], restarts=restarts)

    def stop(self, name: str) -> None:
        """Stop the containers of an endpoint. Open requests are completed, or aborted
        after the grace period.
        """
        with docker_errors():
            for server in self._servers(name):
                self._stop(server)
            if (listener := self._listener(name)) is not None:
                listener.stop()
        if (folder := self.settings.state_dir(name)).exists():
            (folder / served_state.STOPPED).touch()

    def remove(self, name: str) -> None:
        with docker_errors():
            for server in self._servers(name):
                self._end(server)
            self._remove_listener(name)
            # Containers of another home may use the volume.
            unused = {"name": f"^{volume_name(name)}$", "dangling": True}
            for volume in self._engine.volumes.list(filters=unused):
                volume.remove()
        self.settings.state_dir(name).unlink(missing_ok=True)
        shutil.rmtree(home_folder(name, self.settings), ignore_errors=True)

    def is_running(self, name: str) -> bool:
        with docker_errors():
            server = self._server(name)
        return server is not None and server.status in ("running", "restarting")

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        with docker_errors():
            if (server := self._server(name)) is None:
                return
            part = b""
            for piece in server.logs(tail=lines, follow=follow, stream=True):
                *complete_lines, part = (part + piece).split(b"\n")
                yield from (line.decode(errors="replace") for line in complete_lines)

    @property
    def _engine(self) -> docker.DockerClient:
        # With cached_property, Python 3.11 would block all backends of the process
        # while one engine does not answer.
        if self._connected is None:
            try:
                self._connected = docker.from_env()
            except DockerException:
                where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
                path = urlsplit(where).path
                hint = "start it, or set DOCKER_HOST to another engine"
                if path and os.path.exists(path) and not os.access(path, os.W_OK):
                    hint = "this user has no access; add it to the group `docker`"
                raise DeploymentFailed(f"no Docker engine answers at {where}: {hint}") from None
        return self._connected

    def _slot(self, name: str) -> str:
        """Return the slot (folder name) of the current server; empty until the first
        server is ready.
        """
        link = self.settings.state_dir(name)
        return link.readlink().name if link.is_symlink() else ""

    def _containers(self, name: str) -> list[Container]:
        labels = [f"{ENDPOINT}={name}", f"{HOME}={self.settings.home_path}"]
        filters = {"label": labels}
        return [*self._engine.containers.list(all=True, filters=filters, ignore_removed=True)]

    def _servers(self, name: str) -> list[Container]:
        return [item for item in self._containers(name) if SLOT in item.labels]

    def _listener(self, name: str) -> Container | None:
        return next(
            (container for container in self._containers(name) if SLOT not in container.labels),
            None,
        )

    def _server(self, name: str) -> Container | None:
        slot = self._slot(name)
        return next(
            (container for container in self._servers(name) if container.labels[SLOT] == slot), None
        )

    def _check_names(self, name: str) -> None:
        """Raise AlreadyExists if a container of another owner has the name of the
        endpoint's server or listener.
        """
        own_home = str(self.settings.home_path)
        for container in (server_name(name), listener_name(name)):
            try:
                labels = self._engine.containers.get(container).labels
            except NotFound:
                continue
            home = labels.get(HOME)
            endpoint = labels.get(ENDPOINT)
            if (home, endpoint) == (own_home, name):
                continue
            hint = ""
            if home == own_home:
                whose = f"belongs to the endpoint {endpoint!r}"
            elif home:
                whose = f"belongs to ONNXSERVE_HOME={home}"
            else:
                whose = "does not belong to onnxserve"
                hint = f", or `docker rm {container}`"
            raise AlreadyExists(
                f"a container {container!r} exists and {whose}: choose another name{hint}"
            )

    def _replace(
        self, spec: EndpointSpec, server: Container, options: Document, progress: Progress
    ) -> None:
        """Start a new container for `spec`, and then stop the serving container
        `server`.

        If the listener has the address of the spec, the new server takes over its
        socket. Otherwise, the old server is stopped first.
        """
        address = options["labels"][ADDRESS]
        self._check_names(spec.name)  # Stop nothing if a name belongs to another container.
        running = [item for item in (server, self._listener(spec.name)) if _is_running(item)]
        used_addresses = {item.labels.get(ADDRESS, "").partition("@")[0] for item in running}
        if address.partition("@")[0] not in used_addresses:
            # Check before any container is stopped.
            check_port(spec.server.host, spec.server.port or 0)
        takes_over = len(running) == 2 and running[1].labels[ADDRESS] == address
        slot = self._slot(spec.name)
        folder = home_folder(spec.name, self.settings) / (slot or "1")
        if takes_over:
            # The new server has a new slot with a copy of the state.
            earlier = folder
            folder = earlier.with_name(str(int(slot) + 1))
            _prepare_state(folder)
            for kept in _KEPT:
                with suppress(FileNotFoundError):
                    shutil.copy(earlier / kept, folder / kept)
                    share(folder / kept)
        else:
            if server is not None:
                self._end(server)
            _prepare_state(folder)
        files.write_atomically(folder / files.SPEC, dump_spec(spec).encode())
        self._start_listener(spec)
        progress(f"{spec.name}: starting a container of {options['image']}")
        try:
            started = self._engine.containers.create(
                **{**options, "labels": {**options["labels"], SLOT: folder.name}},
                name=f"{server_name(spec.name)}.{folder.name}",
                command=["serve", "--spec", str(folder / files.SPEC), "--state-dir", str(folder)],
            )
            try:
                started.start()
                self._wait(spec, folder, started, ServedState(), progress)
                # Set the restart policy only now, because a restart would hide a crash
                # from `_wait`.
                started.update(restart_policy={"Name": spec.container.restart})
            except BaseException:
                self._end(started)  # Let the container complete accepted requests.
                raise
        except BaseException:
            if takes_over:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self._remove_listener(spec.name)  # Free the port.
            raise
        # Make the folder the state folder of the endpoint in one step.
        link = self.settings.state_dir(spec.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{spec.name}.link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder)
        temporary.replace(link)
        self._settle(spec.name)

    def _remove_listener(self, name: str) -> None:
        if (listener := self._listener(name)) is not None:
            listener.remove(v=True, force=True)

    def _settle(self, name: str) -> None:
        """Stop all servers except the current server, even after a crash, and give the
        current server its name.
        """
        slot = self._slot(name)
        home = home_folder(name, self.settings)
        for server in self._servers(name):
            if server.labels[SLOT] == slot:
                continue
            self._end(server)
            folder = home / server.labels[SLOT]
            # Keep the captured rows that are not yet in the log or sent to a sink.
            for segment in folder.rglob("*.seg"):
                kept = home / (slot or "1") / segment.relative_to(folder)
                make_folder(kept.parent)
                segment.replace(kept)
            shutil.rmtree(folder, ignore_errors=True)
        server = self._server(name)
        if server is not None and server.name != server_name(name):
            server.rename(server_name(name))

    def _start_listener(self, spec: EndpointSpec) -> None:
        """Start the container with the published port. With `container.network: host`,
        there is no listener.
        """
        options = listener_options(spec, self.settings)
        network = spec.container.network
        listener = self._listener(spec.name)
        if listener is not None and listener.labels[ADDRESS] != options["labels"][ADDRESS]:
            listener.remove(v=True, force=True)
            listener = None
        if network == "host":
            return
        if listener is None and network is None:
            name = f"^{NETWORK}$"
            networks = self._engine.networks.list(names=[name])
            if not networks:
                isolated = {"com.docker.network.bridge.enable_icc": "false"}
                self._engine.networks.create(NETWORK, driver="bridge", options=isolated)
                networks = self._engine.networks.list(names=[name])
            # A race may have created two networks.
            oldest = min(networks, key=lambda item: item.attrs["Created"])
            listener = self._engine.containers.create(**options, network=str(oldest.id))
        elif listener is None:
            listener = self._engine.containers.create(**options, network=network)
            joined = self._engine.networks.get(network)
            joined.disconnect(listener)
            # Other containers of the network reach it by the endpoint's name.
            joined.connect(listener, aliases=[spec.name])
        try:
            listener.start()  # A running listener is not restarted.
        except APIError:
            listener.remove(v=True, force=True)
            raise

    def _wait(
        self,
        spec: EndpointSpec,
        folder: Path,
        server: Container,
        before: ServedState,
        log: Progress,
    ) -> None:
        """Wait until the container `server` serves `spec`.

        `before` is the state of its folder before the change, without a spec for a new
        container. Raises DeploymentFailed if the container has ended or is not ready in
        time.
        """
        is_new = before.spec is None

        def why_ended() -> str:
            server.reload()
            # OOMKilled is reliable only for a new container: later, it may be outdated
            # or refer to a single worker.
            is_killed = is_new and server.attrs["State"]["OOMKilled"]
            lives = server.status in ("created", "running") and not is_killed
            if lives:
                return ""
            return f"its container {end_of(server)}"

        self.wait_until_served(spec, folder, before, why_ended, log)

    def _stop(self, server: Container) -> None:
        """Let a server complete its requests and ship its rows. The server is killed
        after its grace period.
        """
        home = home_folder(server.labels[ENDPOINT], self.settings)
        seconds = served_state.written_server(home / server.labels[SLOT]).stop_seconds
        server.stop(timeout=seconds)  # This does nothing if the server has ended.

    def _end(self, server: Container) -> None:
        self._stop(server)
        server.remove(v=True, force=True)


def _is_running(container: Container | None) -> TypeGuard[Container]:
    return container is not None and container.status == "running"


def _prepare_state(folder: Path) -> None:
    """Create the state folder of a new server, and remove an earlier server's files."""
    make_folder(folder)
    for name in (files.SERVER, files.AGENT, served_state.STOPPED):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "workers", ignore_errors=True)
