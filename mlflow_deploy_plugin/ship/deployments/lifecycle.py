"""The life cycle of deployments, for `mlflow deployments …`, `onnxserve endpoint …` and
`onnxserve start/stop`.

An endpoint is a server; a deployment is a variant of its endpoint. The server keeps
answering during a change, and every worker serves the change when the call returns.
Only a change of the spec's `server` section restarts the server.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    Refused,
)
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names
from mlflow_deploy_plugin.core.registry.audit_trail import require_administrator
from mlflow_deploy_plugin.core.registry.connection import find_login, set_service_timeouts
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri, registered_model_uris
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.transitions import (
    StageOrAlias,
    current_version,
    move_version,
)
from mlflow_deploy_plugin.core.settings import Settings, load_settings
from mlflow_deploy_plugin.core.spec.document import (
    add_variant,
    empty_endpoint,
    new_endpoint,
    remove_monitor,
    remove_variant,
)
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.statedir.history import HISTORY, Span, read_history
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Endpoint, Store, unknown_endpoint
from mlflow_deploy_plugin.ship.deployments import server_metrics
from mlflow_deploy_plugin.ship.deployments.backends.targets import (
    LOCAL,
    Observation,
    Target,
    parse_target,
)
from mlflow_deploy_plugin.ship.deployments.config import (
    Config,
    absolute_model_uri,
    check_monitors,
    configure,
    sets_weight,
)
from mlflow_deploy_plugin.ship.deployments.endpoints import Endpoints, ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    HistoryByServer,
    MetricsByServer,
    read_page,
)

_PAGE_SECONDS = 5.0
_OBSERVED_AT_ONCE = 16


@dataclass(frozen=True)
class Deployment:
    name: str
    endpoint: Endpoint
    observation: Observation


@dataclass(frozen=True)
class StageFollower:
    """A deployment that follows a stage.

    Attributes:
        alias_uri: the alias that the deployment is to follow instead.
        version: the version of the stage.
    """

    deployment: str
    stage_uri: str
    alias_uri: str
    version: str


@dataclass(frozen=True)
class Deployments:
    """All deployments and endpoints of the store.

    Every change is audited with its reason `why` and its `actor`, by default the user
    of this process.

    Attributes:
        progress: receives one line per long step.
        target: if it is set, only deployments at this target are visible and created.
            Otherwise the deployments of all targets are visible, and new deployments
            are created on this machine.
    """

    store: Store
    settings: Settings
    progress: Callable[[str], None]
    target: Target | None = None

    def create(
        self, name: str, model_uri: str, config: Config, endpoint: str | None = None
    ) -> Deployment:
        """Serve a model under a new name, if necessary in a new endpoint. Return when
        the server is ready.

        The first deployment of an endpoint gets all traffic. Later deployments get
        traffic when their weight is set.

        Raises AlreadyExists, NotFound, RegistryUnavailable, InvalidConfig if a name or
        a field of `config` is invalid, and DeploymentFailed if the server did not
        become ready, after the deployment was removed.
        """
        stored = self.store.endpoint(endpoint or name)
        if stored is None:
            model_uri = absolute_model_uri(model_uri)
            spec = new_endpoint(endpoint or name, model_uri, variant=name)
            is_path = parse_model_uri(model_uri).kind == "path"
            is_in_image = is_path and not (self.target or LOCAL).is_on_this_machine
            if not is_in_image:
                resolve(model_uri)  # Refuse an unknown model before the server is started.
            self._endpoints.create(self._configured(spec, config))
            return self.get(name, endpoint)
        if not self._sees(stored):
            raise AlreadyExists(
                f"the name {stored.name!r} is taken by an endpoint of `-t {stored.target}`"
            )
        if endpoint is not None:
            return self.add(endpoint, name, model_uri, config)
        if name not in stored.spec.variants:
            raise AlreadyExists(
                f"{name!r} is already an endpoint: use --endpoint {name} to deploy into it"
            )
        raise AlreadyExists(f"the deployment {name!r} already exists: update or delete it")

    def update(
        self, name: str, model_uri: str | None, config: Config, endpoint: str | None = None
    ) -> Deployment:
        """Change a deployment, and start its server. Raises like `create`. A change
        that cannot be served is undone.
        """
        endpoint_name = self._find(name, endpoint).name
        model = {} if model_uri is None else {f"variants.{name}.model": model_uri}
        self._change(
            endpoint_name, lambda spec: self._configured(spec, {**model, **config}), config
        )
        return self.get(name, endpoint_name)

    def delete(
        self, name: str, endpoint: str | None = None, is_trial: bool = False
    ) -> EndpointSpec | None:
        """Delete a deployment. Return its endpoint without the deployment, or None if
        the endpoint is deleted as well. With `is_trial`, no change is made.

        Without `endpoint`, the last deployment of an endpoint of the same name is
        deleted together with the endpoint. Otherwise, the endpoint is kept. Raises
        NotFound if there is no such deployment, InvalidConfig if no remaining
        deployment would answer the endpoint's traffic, and DeploymentFailed if the
        server fails without the deployment.
        """
        endpoint_name = self._find(name, endpoint).name
        with self._endpoints.lock(endpoint_name):
            stored = self.store.endpoint(endpoint_name)
            # Another process may have deleted the deployment.
            if stored is None or name not in stored.spec.variants:
                raise self._no_deployment(name, endpoint)
            if endpoint is None and endpoint_name == name and set(stored.spec.variants) == {name}:
                self._endpoints.remove(endpoint_name, is_trial=is_trial)
                return None
            try:
                remaining = remove_variant(stored.spec, name)
            except InvalidConfig as error:
                hint = f"`onnxserve endpoint delete {endpoint_name}` deletes the endpoint"
                raise InvalidConfig(f"without {name!r} {error.message}; {hint}") from None
            if not is_trial:
                self._endpoints.change(stored, remaining)
            return remaining

    def get(self, name: str, endpoint: str | None = None) -> Deployment:
        stored = self._find(name, endpoint)
        return Deployment(name, stored, self._endpoints.observe(stored).observation)

    def reached(self, stored: Endpoint) -> AbstractContextManager[str]:
        """Yield an address at which this machine reaches an endpoint's running
        server.
        """
        return self._endpoints.backend(stored).reached(stored.spec)

    def server_metrics(
        self, observed: ObservedEndpoint, timeout_seconds: float = _PAGE_SECONDS
    ) -> MetricsByServer:
        """Return the counters of each server of an endpoint; an empty mapping if no
        server answers.
        """
        pages = self._server_pages(observed, "/metrics", timeout_seconds)

        def parse(content: bytes) -> server_metrics.ServerMetrics:
            return server_metrics.parse_server_metrics(content.decode())

        return {server: read_page(page, parse) for server, page in pages.items()}

    def server_history(
        self, observed: ObservedEndpoint, span: Span, timeout_seconds: float = _PAGE_SECONDS
    ) -> HistoryByServer:
        """Return the history that each server of an endpoint has stored, even after a
        local server was stopped.
        """
        name = observed.endpoint.name
        folder = self.settings.state_dir(name)
        pages: Mapping[str, bytes | Refused]
        if (folder / HISTORY).is_dir():
            pages = {name: read_history(folder, span)}
        else:
            pages = self._server_pages(observed, f"/metrics/history?span={span}", timeout_seconds)
        histories = {
            server: read_page(page, server_metrics.parse_server_history)
            for server, page in pages.items()
        }
        return histories or {name: Refused("the server is not running")}

    def place(self, endpoint: str) -> str:
        """Return an id of the server's machine or cluster. Raises NotFound, and the
        errors of `Backend.place`.
        """
        return self._endpoints.backend(self._require(endpoint)).place(endpoint)

    def list(self, endpoint: str | None = None) -> list[Deployment]:
        """Return all deployments, or only those of `endpoint`. Raises NotFound if the
        endpoint does not exist.
        """
        names = None if endpoint is None else [self._require(endpoint).name]
        deployments = []
        for observed in self.list_endpoints(names):
            for name in observed.endpoint.spec.variants:
                deployments.append(Deployment(name, observed.endpoint, observed.observation))
        return deployments

    def start(self, name: str) -> None:
        """Start a deployment's server if it is not running. Raises like `update`, and
        if there is no deployment.
        """
        with self._locked(self._find_server(name)) as stored:
            if not stored.spec.variants:
                raise InvalidConfig(
                    f"the endpoint {stored.name!r} has no deployment that could be served"
                )
            self._endpoints.serve(stored)
            self.store.record("start", endpoint=stored.name)

    def stop(self, name: str) -> None:
        """Stop the server of a deployment; `start` starts it again. Raises NotFound."""
        with self._locked(self._find_server(name)) as stored:
            self._endpoints.backend(stored).stop(stored.name)
            self.store.record("stop", endpoint=stored.name)

    def create_endpoint(self, name: str, config: Config, why: str = "") -> ObservedEndpoint:
        """Create an endpoint for later deployments. Raises AlreadyExists, and
        InvalidConfig if `config` is invalid.
        """
        self._endpoints.create(self._configured(empty_endpoint(name), config), why)
        return self.get_endpoint(name)

    def update_endpoint(
        self,
        endpoint: str,
        config: Config,
        why: str = "",
        actor: str | None = None,
        restores: bool = False,
    ) -> ObservedEndpoint:
        """Change fields of an endpoint, all or none. `restores` is True for a rollback,
        which needs no approvals.

        Raises the errors of `update`.
        """
        audit = {"why": why, "actor": actor, "restores": restores}
        self._change(endpoint, lambda spec: self._configured(spec, config), config, **audit)
        return self.get_endpoint(endpoint)

    def set_traffic(
        self,
        endpoint: str,
        weights: Config,
        why: str = "",
        actor: str | None = None,
        by_rollout: bool = False,
        restores: bool = False,
    ) -> ObservedEndpoint:
        """Set the weights of all variants but shadows (default: 0). Only `by_rollout`
        allows this during a rollout.

        `restores` is True if the traffic returns to the earlier version, which needs no
        approvals.
        """
        config = {"traffic": weights}
        fields: Iterable[str] = () if by_rollout else config
        audit = {"action": "traffic", "why": why, "actor": actor, "restores": restores}
        self._change(endpoint, lambda spec: configure(spec, config), fields, **audit)
        return self.get_endpoint(endpoint)

    def follow_alias(
        self,
        endpoint: str,
        alias: str,
        deployment: str | None = None,
        why: str = "",
        is_trial: bool = False,
    ) -> Sequence[StageFollower]:
        """Make the deployments that follow a stage (or only `deployment`) follow an
        alias. Return these deployments.

        The version in the stage gets the alias first, so the server keeps serving this
        version without a reload. If an earlier call was interrupted, this call
        completes it. With `is_trial`, no change is made.

        Raises the errors of `update`, AlreadyExists during a rollout, NotFound if the
        stage has no version, and InvalidConfig if no deployment follows a stage,
        another version has the alias, or MLflow refuses the alias.
        """
        with self._locked(endpoint) as stored:
            self.store.require_no_rollout(endpoint)
            if deployment is not None:
                self._find(deployment, endpoint)  # Raises NotFound.
            followers = _stage_followers(stored.spec, alias, deployment)
            if is_trial:
                return followers
            if not followers:
                # An interrupted call may have stored the spec without applying it.
                self._endpoints.serve(stored)
                return followers
            models = {}
            stages = {}
            for item in followers:
                place = parse_model_uri(item.alias_uri)
                move_version(place, item.version, clears_rollback=False)
                models[f"variants.{item.deployment}.model"] = item.alias_uri
                stages[item.deployment] = parse_model_uri(item.stage_uri).selector
            changed = configure(stored.spec, models)
            detail = {"stages": stages}
            self._endpoints.change(stored, changed, action="follow", why=why, detail=detail)
        return followers

    def delete_endpoint(self, endpoint: str, why: str = "") -> None:
        """Complete open requests, then delete the endpoint and its deployments. Raises
        NotFound without an endpoint.
        """
        if endpoint in self.store.names():  # Check before the name is used for a lock file.
            target = self._endpoints.target_of(endpoint)
            if self.target not in (None, target):
                raise NotFound(f"the endpoint {endpoint!r} is at `-t {target}`")
            with self._endpoints.lock(endpoint):
                if endpoint in self.store.names():
                    self._endpoints.remove(endpoint, why)
                    return
        raise unknown_endpoint(endpoint, self.store.names())

    def get_endpoint(self, endpoint: str) -> ObservedEndpoint:
        return self._endpoints.observe(self._require(endpoint))

    def list_endpoints(self, only: Collection[str] | None = None) -> Sequence[ObservedEndpoint]:
        """Return the endpoints, sorted by name. `progress` receives a line per
        unreadable endpoint.

        Endpoints are observed in parallel, so that a hanging cluster does not delay the
        others.
        """
        for unreadable in self.store.unreadable():
            self.progress(unreadable.reason)
        with ThreadPoolExecutor(_OBSERVED_AT_ONCE) as pool:
            selected = [item for item in self._seen() if only is None or item.name in only]
            return [*pool.map(self._endpoints.observe, selected)]

    def add(
        self,
        endpoint: str,
        name: str,
        model_uri: str,
        config: Config,
        why: str = "",
        actor: str | None = None,
    ) -> Deployment:
        """Add a deployment to an existing endpoint. Raises the errors of `create`, and
        NotFound for the endpoint.
        """
        model_uri = absolute_model_uri(model_uri)
        self._change(
            endpoint,
            lambda spec: self._configured(add_variant(spec, name, model_uri), config),
            why=why,
            actor=actor,
        )
        return self.get(name, endpoint)

    def remove(self, endpoint: str, name: str, why: str = "", actor: str | None = None) -> None:
        """Remove a deployment, but not its endpoint. A missing deployment is ignored.

        Raises NotFound without the endpoint, InvalidConfig if no remaining deployment
        would answer the endpoint's traffic, and DeploymentFailed if the server fails
        without the deployment.
        """
        with self._locked(endpoint) as stored:
            if name in stored.spec.variants:
                self._endpoints.change(
                    stored, remove_variant(stored.spec, name), why=why, actor=actor
                )

    def remove_monitor(self, endpoint: str, monitor: str, why: str = "") -> None:
        """Remove a monitor from an endpoint. Its results are kept. Raises NotFound."""
        self._require(endpoint).spec.monitor(monitor)
        self._change(endpoint, lambda spec: remove_monitor(spec, monitor), why=why)

    def poll_registry(self, model: str) -> None:
        """Make the agents of servers that follow the model poll the registry now,
        because the registry has changed.
        """
        for stored in self.store.endpoints():
            uris = registered_model_uris(stored.spec)
            if any(uri.followed and uri.name == model for uri in uris):
                with suppress(OnnxserveError):  # The agent also polls on a schedule.
                    self._endpoints.backend(stored).poll_registry(stored.name)

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last log lines of a deployment's server; with `follow`, also new
        lines. Raises NotFound.
        """
        endpoint_name = self._find_server(name)
        yield from (
            self._endpoints.target_of(endpoint_name)
            .backend(self.settings)
            .logs(endpoint_name, lines, follow)
        )

    @property
    def _endpoints(self) -> Endpoints:
        return Endpoints(self.store, self.settings, self.progress, self.target or LOCAL)

    def _sees(self, stored: Endpoint) -> bool:
        return self.target is None or parse_target(stored.target) == self.target

    def _server_pages(
        self, observed: ObservedEndpoint, path: str, timeout_seconds: float
    ) -> Mapping[str, bytes | Refused]:
        """Return a page of each server of an endpoint, or the reason why the server
        does not return it; empty if no server answers.
        """
        if not observed.observation.url:  # The URL is empty while the server does not answer.
            return {}
        stored = observed.endpoint
        try:
            return self._endpoints.backend(stored).server_pages(stored.spec, path, timeout_seconds)
        except OnnxserveError as error:
            return {stored.name: Refused(error.message)}

    def _seen(self) -> Sequence[Endpoint]:
        return [stored for stored in self.store.endpoints() if self._sees(stored)]

    def _require(self, endpoint: str) -> Endpoint:
        stored = self.store.require_endpoint(endpoint)
        if not self._sees(stored):
            raise NotFound(
                f"the endpoint {endpoint!r} is not at {self.target}, but at `-t {stored.target}`"
            )
        return stored

    @contextmanager
    def _locked(self, endpoint: str) -> Iterator[Endpoint]:
        self._require(endpoint)  # Check before the name is used for a lock file.
        with self._endpoints.lock(endpoint):
            yield self._require(endpoint)

    def _change(
        self,
        endpoint: str,
        change_spec: Callable[[EndpointSpec], EndpointSpec],
        fields: Iterable[str] = (),
        **audit: Any,
    ) -> None:
        """Change an endpoint. Raises InvalidConfig during a rollout if a weight is
        among the changed `fields`, and ScopeMissing if a requirement is removed by
        another caller than an administrator.

        Args:
            endpoint: the name of the endpoint.
            change_spec: returns the new spec for the current spec.
            fields: the dotted names of the changed fields.
            audit: the arguments of `Endpoints.change` for the audit event.
        """
        with self._locked(endpoint) as stored:
            if any(map(sets_weight, fields)):
                refused = rollout_traffic_refusal(self.store, endpoint)
                if refused is not None:
                    raise InvalidConfig(refused.reason)
            changed = change_spec(stored.spec)
            changed.require_one_observed()
            if not stored.spec.requirements <= changed.requirements:
                require_administrator(self.store, f"can remove a requirement of {endpoint}")
            self._endpoints.change(stored, changed, **audit)

    def _configured(self, spec: EndpointSpec, config: Config) -> EndpointSpec:
        """Return `spec` with the fields of `config`, after checking its monitors.
        Raises the errors of `configure`.
        """
        changed = configure(spec, config)
        check_monitors(changed, config, self.progress)
        return changed

    def _find(self, name: str, endpoint: str | None) -> Endpoint:
        """Return the endpoint of a deployment: `endpoint`, the endpoint of this name,
        or the only endpoint with it.

        Raises NotFound without the deployment, and InvalidConfig if several endpoints
        have it.
        """
        candidates = [
            item
            for item in self._seen()
            if name in item.spec.variants and endpoint in (None, item.name)
        ]
        if not candidates:
            raise self._no_deployment(name, endpoint)
        namesakes = [item for item in candidates if item.name == name]
        if len(candidates) > 1 and not namesakes:
            names = ", ".join(item.name for item in candidates)
            raise InvalidConfig(
                f"the endpoints {names} each have a deployment {name!r}: select one with --endpoint"
            )
        return (namesakes or candidates)[0]

    def _no_deployment(self, name: str, endpoint: str | None) -> NotFound:
        """Return the error for an unknown deployment, with the names that exist.
        `endpoint` is None if the user has not selected an endpoint.
        """
        namesake = self.store.endpoint(endpoint or name)
        if namesake is not None and not self._sees(namesake):
            return NotFound(
                f"the deployment {name!r} is not at {self.target}, but at `-t {namesake.target}`"
            )
        where = f" in endpoint {endpoint!r}" if endpoint else ""
        message = f"there is no deployment {name!r}{where}"
        if endpoint is not None and namesake is None:
            return NotFound(f"{message}; {unknown_endpoint(endpoint, self.store.names()).message}")
        if endpoint is None and namesake is not None:
            return NotFound(
                f"{message}; {name!r} is an endpoint: see `onnxserve endpoint get {name}`"
            )
        searched = [item.spec.variants for item in self._seen() if endpoint in (None, item.name)]
        variants = list(dict.fromkeys(chain.from_iterable(searched)))
        hint = (
            f"there are {join_names(variants, name)}"
            if variants
            else "there are no deployments yet"
        )
        return NotFound(f"{message}{did_you_mean(name, variants, hint)}")

    def _find_server(self, name: str) -> str:
        if name in self.store.names():
            return name
        return self._find(name, None).name


@contextmanager
def open_deployments(
    progress: Callable[[str], None], target: Target | None = None
) -> Iterator[Deployments]:
    set_service_timeouts()
    settings = load_settings()
    with closing(open_store(settings.store_url, find_login=find_login)) as store:
        yield Deployments(store, settings, progress, target)


def rollout_traffic_refusal(store: Store, endpoint: str) -> Refused | None:
    """Return why a live rollout forbids a change of weights (its next step would undo
    it); None without a rollout.
    """
    if not store.rollouts(endpoint, live=True):
        return None
    return Refused(
        f"the traffic of {endpoint!r} cannot be changed during a rollout: `onnxserve rollout "
        f"abort {endpoint}` aborts the rollout and restores the previous traffic"
    )


def _stage_followers(spec: EndpointSpec, alias: str, deployment: str | None) -> list[StageFollower]:
    """Return the deployments to convert; none if they already follow the alias.
    `deployment` is None for all deployments.

    Raises NotFound if a stage has no version, and InvalidConfig if no deployment
    follows a stage or the alias, or the alias has another version or would have two.
    """
    uris = {
        name: parse_model_uri(variant.model)
        for name, variant in spec.variants.items()
        if deployment in (None, name)
    }
    kinds = {(uri.kind, uri.selector if uri.kind == "alias" else "") for uri in uris.values()}
    if kinds.isdisjoint({("stage", ""), ("alias", alias)}):
        served = "".join(f"; {name!r} serves {spec.variants[name].model}" for name in uris)
        raise InvalidConfig(f"no deployment of endpoint {spec.name!r} follows a stage{served}")
    followers: list[StageFollower] = []
    for name, uri in uris.items():
        if uri.kind != "stage":
            continue
        stage_uri = spec.variants[name].model
        alias_uri = StageOrAlias(alias=alias).uri(uri.name)
        version = resolve(stage_uri).version
        holder = current_version(parse_model_uri(alias_uri))
        if holder not in ("", version):
            raise InvalidConfig(
                f"{alias_uri} is version {holder}, but {stage_uri} is version {version}: "
                f"`onnxserve promote models:/{uri.name}/{version} --to @{alias}` moves the alias "
                f"to version {version}; or specify another alias with --alias"
            )
        for other in followers:
            if other.alias_uri == alias_uri and other.version != version:
                raise InvalidConfig(
                    f"{alias_uri} cannot be version {other.version} for {other.deployment!r} and "
                    f"version {version} for {name!r}: convert each deployment with --deployment "
                    "and a different --alias"
                )
        followers.append(StageFollower(name, stage_uri, alias_uri, version))
    return followers
