"""The life of deployments: what `mlflow deployments …` and `onnxserve start/stop` do, in our own terms.

An endpoint is a server; a deployment is a variant in it. The store says what is wanted, the backend makes it so. What
is wanted is written down first, so that a crash in between is finished by the next `start` or `update`; where making it
so fails, both are put back as they were.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_deploy_plugin.deployments.backends import local
from mlflow_deploy_plugin.deployments.backends.observation import Observation
from mlflow_deploy_plugin.deployments.backends.ports import choose_port
from mlflow_deploy_plugin.deployments.locking import locked
from mlflow_deploy_plugin.deployments.target import TARGET
from mlflow_deploy_plugin.errors import AlreadyExists, InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.registry.reference import parse_model_uri
from mlflow_deploy_plugin.registry.resolve import resolve
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, add_variant, apply_config, new_endpoint, remove_variant
from mlflow_deploy_plugin.store import Endpoint, Store


@dataclass(frozen=True)
class Deployment:
    """A variant of an endpoint, and what is to be seen of its server."""

    name: str
    endpoint: Endpoint
    observation: Observation


@dataclass(frozen=True)
class Deployments:
    """All deployments of this machine.

    Args:
        progress: is told in one line each what a long step is doing.
    """

    store: Store
    settings: Settings
    progress: Callable[[str], None]

    def create(self, name: str, model_uri: str, config: Mapping[str, Any], endpoint: str | None = None) -> Deployment:
        """Serves a model under a new name, and returns when it answers.

        Raises:
            AlreadyExists: the name is taken.
            NotFound / RegistryUnavailable: the model is not there, or MLflow does not say so.
            InvalidConfig: a name or a field of `config` cannot be.
            DeploymentFailed: the server did not become ready. Nothing is left behind.
        """
        model_uri = _absolute(model_uri)
        stored = self.store.endpoint(endpoint or name)
        if stored is None:
            self._create_endpoint(new_endpoint(endpoint or name, model_uri, config, variant=name), model_uri)
        elif endpoint is None:
            raise AlreadyExists(f"a deployment {name!r} exists already: update or delete it")
        else:
            with self._lock(endpoint):
                spec = self._stored(endpoint).spec
                self._change(spec, add_variant(spec, name, model_uri, config))
        return self.get(name, endpoint)

    def update(
        self, name: str, model_uri: str | None, config: Mapping[str, Any], endpoint: str | None = None
    ) -> Deployment:
        """Changes a deployment, and brings it back where its server does not run.

        Raises:
            NotFound: there is no such deployment.
            InvalidConfig: as `create`.
            DeploymentFailed: what is wanted cannot be served; what was served before still is.
        """
        found = self._find(name, endpoint).name
        with self._lock(found):
            spec = self._stored(found).spec
            model = {} if model_uri is None else {f"variants.{name}.model": _absolute(model_uri)}
            self._change(spec, apply_config(spec, {**model, **config}))
        return self.get(name, found)

    def delete(self, name: str, endpoint: str | None = None) -> None:
        """Ends a deployment; the last one of an endpoint takes the server with it. Nothing to delete is fine.

        Raises:
            InvalidConfig: no deployment that stays would answer the endpoint's traffic.
            DeploymentFailed: the server does not go on without it.
        """
        try:
            found = self._find(name, endpoint).name
        except NotFound:
            return
        with self._lock(found):
            spec = self._stored(found).spec
            if set(spec.variants) == {name}:
                local.remove(found, self.settings)
                self.store.remove_endpoint(found)
            elif name in spec.variants:
                self._change(spec, remove_variant(spec, name))

    def get(self, name: str, endpoint: str | None = None) -> Deployment:
        """Raises NotFound where there is no such deployment."""
        stored = self._find(name, endpoint)
        return Deployment(name, stored, local.observe(stored.spec, self.settings))

    def list(self, endpoint: str | None = None) -> list[Deployment]:
        """All deployments (of one endpoint)."""
        return [
            Deployment(name, stored, observation)
            for stored in self.store.endpoints()
            if endpoint in (None, stored.name)
            for observation in [local.observe(stored.spec, self.settings)]
            for name in stored.spec.variants
        ]

    def start(self, name: str) -> None:
        """Brings the server of a deployment back, on its port; it may be running already.

        Raises:
            NotFound, DeploymentFailed: as `update`.
        """
        found = self._find_server(name)
        with self._lock(found):
            local.realise(self._stored(found).spec, self.settings, self.progress)
            self.store.record("start", found)

    def stop(self, name: str) -> None:
        """Stops the server of a deployment, which `start` brings back. Raises NotFound."""
        found = self._find_server(name)
        with self._lock(found):
            local.stop(found, self.settings)
            self.store.record("stop", found)

    def _create_endpoint(self, spec: EndpointSpec, model_uri: str) -> None:
        resolve(model_uri)  # what the registry does not have is said at once, before anything is started
        with self._lock(spec.name):  # before the name is taken, so that nobody deletes it before it is served
            spec = self._take_name_and_port(spec)
            try:
                local.realise(spec, self.settings, self.progress)
            except BaseException:  # also Ctrl-C: whoever gives up waiting wants nothing left behind
                local.remove(spec.name, self.settings)
                self.store.remove_endpoint(spec.name)
                raise

    def _take_name_and_port(self, spec: EndpointSpec) -> EndpointSpec:
        """Puts the spec into the store, with a port that is no other deployment's, also not of one that is stopped."""
        with locked(self.settings.deployments_path / ".ports.lock"):
            owners = {e.spec.server.port: e.name for e in self.store.endpoints() if e.target == TARGET}
            if spec.server.port is None:
                port = choose_port(spec.server.host, [taken for taken in owners if taken is not None])
                spec = apply_config(spec, {"server.port": port})
            _check_owner(spec, owners)
            return self.store.add_endpoint(TARGET, spec).spec

    def _change(self, old: EndpointSpec, new: EndpointSpec) -> None:
        """Makes `new` of `old`, or leaves `old` as it was. The lock is held."""
        _check_owner(new, {e.spec.server.port: e.name for e in self.store.endpoints() if e.target == TARGET})
        was_running = local.is_running(old.name, self.settings)
        self.store.replace_spec(new)
        try:
            local.realise(new, self.settings, self.progress)
        except BaseException:
            self.store.replace_spec(old)
            if was_running:
                self.progress(f"{old.name}: going back to what was served before")
                with contextlib.suppress(OnnxserveError):  # the first failure is the one to tell
                    local.realise(old, self.settings, lambda line: None)
            else:
                local.stop(old.name, self.settings)
            raise

    def _find(self, name: str, endpoint: str | None) -> Endpoint:
        """The endpoint of a deployment: the one given, the one of the same name, or the only one that has it."""
        stored = [e for e in self.store.endpoints() if name in e.spec.variants and endpoint in (None, e.name)]
        own = [e for e in stored if e.name == name]
        if len(stored) > 1 and not own:
            names = ", ".join(e.name for e in stored)
            raise InvalidConfig(f"the endpoints {names} have a deployment {name!r} each: say which by --endpoint")
        if not stored:
            raise NotFound(f"there is no deployment {name!r}{f' in endpoint {endpoint!r}' if endpoint else ''}")
        return (own or stored)[0]

    def _find_server(self, name: str) -> str:
        """The endpoint that is meant by its own name or by that of a deployment in it."""
        return name if self.store.endpoint(name) is not None else self._find(name, None).name

    def _stored(self, endpoint: str) -> Endpoint:
        """Raises NotFound: it may have been deleted while we waited for the lock."""
        stored = self.store.endpoint(endpoint)
        if stored is None:
            raise NotFound(f"there is no endpoint {endpoint!r}")
        return stored

    @contextlib.contextmanager
    def _lock(self, endpoint: str) -> Iterator[None]:
        """Whatever changes an endpoint happens while this is held.

        Raises:
            InvalidConfig: the disk is full, or the folder of the deployments cannot be written.
        """
        try:
            with locked(local.lock_path(endpoint, self.settings)):
                yield
        except OSError as error:
            folder = self.settings.deployments_path
            raise InvalidConfig(f"the folder {folder} cannot be used: {error.strerror or error}") from error


def _check_owner(spec: EndpointSpec, owners: Mapping[int | None, str]) -> None:
    port = spec.server.port
    if port is not None and owners.get(port, spec.name) != spec.name:
        raise InvalidConfig(f"port {port} belongs to the deployment {owners[port]!r}: choose another one")


def _absolute(model_uri: str) -> str:
    """A folder by its whole path: the server does not run where the command is typed."""
    reference = parse_model_uri(model_uri)
    if reference.kind != "path":
        return model_uri
    return str(Path(reference.name).expanduser().absolute())
