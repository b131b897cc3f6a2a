"""The versions in a worker's memory: load, warm up, swap in with a single assignment,
and free the old versions.

A request holds a `ServedVariant` until it is answered, so that exactly one version
answers it. A version outside the table is freed when its last request ends. If a new
version fails to load, the old version remains in use.
"""

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

from mlflow_deploy_plugin.core.errors import NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.statedir.files import (
    WANTED,
    file_identity,
    mark_loading,
    read_state,
    worker_file,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    Wanted,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.serve import variants
from mlflow_deploy_plugin.serve.models.lazy_models import LazyModels
from mlflow_deploy_plugin.serve.models.loading import WarmVersion, load_version
from mlflow_deploy_plugin.serve.runtime.feeds import no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.guard import RANGES_FILE, Guard
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.session import must_end
from mlflow_deploy_plugin.serve.runtime.steps import SENT, Steps, load_steps
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask, exclude_columns
from mlflow_deploy_plugin.serve.variants import (
    LoadedVersion,
    ServedEndpoint,
    ServedTable,
    ServedVariant,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
_PYFUNCS_AT_ONCE = 4
_MAX_RETIRING_SECONDS = 5.0
_RETIRING_POLL_SECONDS = 0.02
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_DEFAULT = (
    "this server has no default endpoint: name a registered model in the path, such as "
    "/models/NAME/invocations; POST /v2/repository/index lists the models"
)
_Identity = tuple[str | Path, ...]
_NOT_LOADED = "no model is loaded yet; retry in a moment"


class Repository:
    """The versions in the memory of a worker.

    Attributes:
        table: the endpoints that are currently served.
        unloaded: the endpoints that a command has unloaded and another command may load
            again.
        lazy: the registered models of the server that are loaded at their first
            request; None if the server serves the endpoints of a spec.
        has_pyfuncs: True if a side process answers for a version in memory, not
            counting shadows.
        has_steps: True if an endpoint has steps.
        version_of: returns the version in paths of a version; empty if it has none.
    """

    def __init__(self, state_dir: Path, load: Callable[[Path, str], WarmVersion]) -> None:
        self.state_dir = state_dir
        self.table: ServedTable = {}
        self.unloaded: tuple[str, ...] = ()
        self.lazy: LazyModels | None = None
        self.has_pyfuncs = False
        self.has_steps = False
        self.version_of: Callable[[LoadedVersion], str] = attrgetter("version")
        self._load = load
        self._listeners: list[Callable[[ServedTable], None]] = []
        self._changing = threading.Lock()
        self._applied: dict[str, WantedEndpoint] = {}
        self._loaded: dict[str, dict[str, LoadedVariant]] = {}
        self._generation: int | None = None
        self._applied_file: tuple[int, int, int] | None = None
        """The identity of the wanted.json that was read last."""
        self._unwritten: WorkerState | None = None
        """The state of this worker that is not written yet because the disk was full.
        """
        self._retiring: weakref.WeakSet[LoadedVersion] = weakref.WeakSet()
        """The replaced versions that requests still use."""
        self._stopping = threading.Event()
        self._has_applied = threading.Event()
        self._follower = threading.Thread(
            target=self._follow, name="onnxserve-repository", daemon=True
        )

    def add_listener(self, on_change: Callable[[ServedTable], None]) -> None:
        """Call a function with the current table, and with the new table after every
        change.
        """
        with self._changing:
            self._listeners.append(on_change)
            on_change(self.table)

    def start(self) -> None:
        self._follower.start()

    def wait_until_applied(self, seconds: float) -> bool:
        """Wait until the initially wanted versions are loaded or cannot be loaded;
        return False after `seconds`.
        """
        return self._has_applied.wait(seconds)

    def stop(self) -> None:
        self._stopping.set()
        # A worker that must end may load a model without end.
        if self._follower.is_alive() and not must_end.is_set():
            self._follower.join()
        self.table = {}
        with suppress(OSError):  # gunicorn's `child_exit` removes the file if this fails.
            worker_file(self.state_dir, os.getpid()).unlink(missing_ok=True)

    def select_variant(
        self,
        endpoint: str | None,
        version: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        key: str | None = None,
        draw: float | None = None,
        label: str | None = None,
    ) -> ServedVariant:
        """Return the variant for a request. The caller must hold the variant until the
        response is sent.

        Args:
            endpoint: None for the default endpoint, which is the first endpoint.
            version: the loaded version that must answer, regardless of its weight. If
                it is None, the variant depends on `key`, then on the endpoint's sticky
                header, then on `draw`.
            headers: the headers with names in lower case.
            key: the value of the sticky column, which is known only after a variant has
                decoded the request.
            draw: a number in [0, 1) that selects a variant by its weight; None for a
                random number.
            label: the name of the variant that must answer, or the alias that this
                variant follows.

        Raises NotReady if no loaded version can answer, and NotFound for an unknown
        endpoint, version or label.
        """
        name, served = self.find(endpoint)
        if label is not None:
            for variant_name, variant in served.variants.items():
                if label in (variant_name, variant.aspects.get("alias")):
                    return variant
            labels = ", ".join(served.variants)
            raise NotFound(f"endpoint {name!r} has no label {label[:100]!r}; it has {labels}")
        if version is not None:
            for variant in (*served.answering, *served.variants.values()):
                if self.version_of(variant.loaded) == version:
                    return variant
            names = {self.version_of(variant.loaded) for variant in served.variants.values()}
            loaded = ", ".join(sorted(filter(None, names))) or "none"
            raise NotFound(
                f"endpoint {name!r} has no version {version[:100]!r} loaded; it has {loaded}"
            )
        if not served.answering:
            raise NotReady(self.unavailable_reason(name))
        sticky = served.sticky
        if sticky is not None and sticky.header is not None and key is None:
            key = headers.get(sticky.header) or None
        if key is not None:
            return variants.sticky_variant(served.answering, name, key)
        if draw is None:
            draw = random.random()
        return variants.weighted_variant(served.answering, draw)

    @property
    def default_endpoint(self) -> str | None:
        """The first endpoint; None if no endpoint is loaded, or all registered models
        are served.
        """
        return next(iter(self.table), None) if self.lazy is None else None

    def versions(self, endpoint: str) -> tuple[str, ...]:
        return self.find(endpoint)[1].versions

    def find(self, endpoint: str | None) -> tuple[str, ServedEndpoint]:
        """Return the endpoint's name and the endpoint (None: the default). Raises
        NotFound for an unknown endpoint, and NotReady if no endpoint is loaded yet.
        Loads a registered model that is not in memory.
        """
        if self.lazy is not None and self._generation is not None:
            if endpoint is None:
                raise NotFound(_NO_DEFAULT)
            return endpoint, self.lazy.find(endpoint)
        table = self.table
        name = next(iter(table), None) if endpoint is None else endpoint
        served = table.get(name) if name is not None else None
        if name is None or served is None:
            if endpoint is None or self._generation is None:
                raise NotReady(_NOT_LOADED)
            if endpoint in self.unloaded:
                raise NotFound(
                    f"endpoint {endpoint!r} is unloaded; load it with POST "
                    f"/v2/repository/models/{endpoint}/load"
                )
            listed = join_names(map(repr, table), repr(endpoint)) or "none"
            raise NotFound(
                f"endpoint {endpoint[:100]!r} does not exist; existing endpoints: {listed}"
            )
        return name, served

    def not_ready_reason(self) -> str:
        """Return the reason why no endpoint can answer yet; empty if an endpoint can
        answer or none is configured.
        """
        if self._generation is None:
            return _NOT_LOADED
        if self.lazy is not None:
            return ""
        table = self.table
        answering = chain.from_iterable(served.answering for served in table.values())
        reasons = (variant.loaded.predictor.unavailable_reason for variant in answering)
        if not table or not all(reasons):
            return ""
        return self.unavailable_reason(next(iter(table)))

    @property
    def is_complete(self) -> bool:
        """True if this worker can answer requests and has loaded all wanted
        versions.
        """
        return not self.not_ready_reason() and not any(map(_errors, self._loaded.values()))

    def unavailable_reason(self, endpoint: str) -> str:
        """Return a message that the endpoint cannot answer, with the reason for each
        variant that has one.
        """
        reasons = {}
        if served := self.table.get(endpoint):
            for name, variant in served.variants.items():
                reasons[name] = variant.loaded.predictor.unavailable_reason
        if applied := self._applied.get(endpoint):
            reasons |= applied.errors
        reasons |= _errors(self._loaded.get(endpoint, {}))
        listed = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items() if reason)
        message = f"endpoint {endpoint!r} has no version that can answer"
        if listed:
            return f"{message}: {listed}"
        return message

    def poll(self) -> None:
        """Serve the wanted versions if wanted.json has changed, and report the state of
        this worker.
        """
        file = file_identity(self.state_dir / WANTED)
        if file is None:
            return
        if file != self._applied_file:
            wanted = read_state(self.state_dir / WANTED, Wanted)
            self._applied_file = file
            if wanted is None:
                logger.error("%s cannot be read; the served versions remain unchanged", WANTED)
                return
            if self.lazy is not None and wanted.listed is not None:
                self.lazy.follow(wanted.listed)
            self._apply(wanted)
        if self.lazy is not None:
            self.lazy.poll()
        if self._unwritten is not None:
            try:
                write_state(worker_file(self.state_dir, os.getpid()), self._unwritten)
                self._unwritten = None
            except OSError as error:  # The next poll tries again.
                logger.error("the state of this worker cannot be written: %s", error.strerror)

    def _follow(self) -> None:
        """Poll the wanted state until `stop`. After an error, the served versions
        remain.
        """
        while True:
            try:
                self.poll()
            except BaseException:
                logger.exception("applying %s failed; the served versions remain unchanged", WANTED)
            self._has_applied.set()
            if self._stopping.wait(POLL_SECONDS):
                return

    def _apply(self, wanted: Wanted) -> None:
        """Load the wanted versions and swap them in, endpoint by endpoint. An endpoint
        with errors is loaded again.
        """
        removed = self._applied.keys() - wanted.endpoints.keys()
        self.exchange({}, removed)
        for name in removed:
            del self._loaded[name]
            del self._applied[name]
        with ThreadPoolExecutor(_PYFUNCS_AT_ONCE, "onnxserve-pyfunc") as pool:
            started_loads = {
                _identity(want): pool.submit(load_version, self.state_dir, self._load, want)
                for want in self._new_pyfuncs(wanted)
            }
            for name, endpoint in wanted.endpoints.items():
                if endpoint == self._applied.get(name) and not _errors(self._loaded[name]):
                    continue
                served, self._loaded[name] = self._load_endpoint(name, endpoint, started_loads)
                self._applied[name] = endpoint
                self.exchange({name: served})
        if list(self._applied) != list(wanted.endpoints):
            self._applied = dict(wanted.endpoints)
            # The first endpoint is the default.
            self.exchange({name: self.table[name] for name in wanted.endpoints}, self._applied)
        self.unloaded = wanted.unloaded
        self._generation = wanted.generation
        self._unwritten = WorkerState(
            pid=os.getpid(), generation=wanted.generation, endpoints=self._loaded
        )

    def _new_pyfuncs(self, wanted: Wanted) -> list[WantedVariant]:
        """Return the pyfuncs of new endpoints, whose processes are started in
        parallel.
        """
        held = set(map(_identity, _loaded_versions(self.table)))
        pyfuncs = []
        for name, endpoint in wanted.endpoints.items():
            for want in endpoint.variants.values() if name not in self.table else ():
                if _identity(want) in held:
                    continue
                with suppress(OnnxserveError):  # Loading the version raises the error again.
                    if read_served_artifact(want.folder).flavor == PYTHON_FUNCTION:
                        held.add(_identity(want))
                        pyfuncs.append(want)
        return pyfuncs

    def _load_endpoint(
        self,
        endpoint: str,
        wanted: WantedEndpoint,
        started_loads: dict[_Identity, Future[LoadedVersion]],
    ) -> tuple[ServedEndpoint, dict[str, LoadedVariant]]:
        """Return the endpoint with its loadable versions, and the state of each wanted
        variant. A variant with an error keeps the version that it serves now, if any.

        `started_loads` has the loads that were started; each is used once.
        """
        served_before = self.table.get(endpoint)
        before = served_before.variants if served_before is not None else {}
        steps, error_of_steps = self._take_steps(endpoint, wanted, before)
        errors = dict.fromkeys(wanted.variants, error_of_steps) if error_of_steps else {}
        # Never serve the versions without their steps.
        loadable = {} if error_of_steps and not before else wanted.variants
        held = {_identity(loaded): loaded for loaded in _loaded_versions(self.table)}
        served_variants = {}
        for name, want in loadable.items():
            old = before.get(name)
            try:
                identity = _identity(want)
                loaded = held.get(identity)
                if loaded is None and identity in started_loads:
                    loaded = started_loads.pop(identity).result()
                elif loaded is None:
                    self._wait_for_retiring(want.model)
                    loaded = load_version(self.state_dir, self._load, want)
                held[identity] = loaded
            except OnnxserveError as error:
                errors[name] = error.message
                logger.error(
                    "%s/%s: %s %s: %s; %s in use",
                    endpoint,
                    name,
                    want.model,
                    want.version,
                    error.message,
                    f"version {old.loaded.version} remains" if old else "no version is",
                )
                if old is None:
                    continue
                loaded = old.loaded
            try:
                keys = (SENT,) if steps and steps.before else ()
                captured = exclude_columns(
                    loaded.captured,
                    wanted.capture.drop,
                    wanted.capture.mask,
                    wanted.capture.keys + keys,
                )
                if wanted.capture.mask:  # Masked columns need the server's key.
                    ColumnMask(self.state_dir / MASK_KEY).ensure_key()
                variant = ServedVariant(
                    endpoint,
                    name,
                    want.weight,
                    want.shadow,
                    loaded,
                    wanted.capture,
                    replace(captured, steps=steps.digest) if steps else captured,
                    want.aspects,
                    steps=steps,
                    is_named=self.lazy is None or self.lazy.is_named(endpoint),
                )
                if wanted.guard is not None and not want.shadow:
                    variant = _with_guard(variant, wanted.guard.then == "refuse")
            except OnnxserveError as error:
                # Serving the version would capture columns that must be excluded.
                errors[name] = error.message
                logger.error("%s/%s: %s", endpoint, name, error.message)
                if old is None:
                    continue
                variant = old
            served_variants[name] = variant
        served = variants.make_served_endpoint(served_variants, wanted.sticky)
        for variant in served.answering:
            schema = variant.loaded.predictor.schema
            if variant.key is not None and not variants.has_sticky_column(schema, variant.key):
                logger.warning(
                    "%s/%s: version %s has no input column %r for sticky variants: the variant is "
                    "random",
                    variant.endpoint,
                    variant.name,
                    variant.loaded.version,
                    variant.key,
                )
        states = {}
        for name in wanted.variants:
            state = LoadedVariant(
                error=errors.get(name, ""), is_error_of_steps=bool(error_of_steps)
            )
            if name in served_variants:
                loaded = served_variants[name].loaded
                no_batch = no_batch_dimension_reason(loaded.predictor.artifact)
                version = {"version": loaded.version, "no_batch": no_batch}
                state = state.model_copy(update=version)
            states[name] = state
        return served, states

    def _take_steps(
        self, endpoint: str, wanted: WantedEndpoint, before: Mapping[str, ServedVariant]
    ) -> tuple[Steps | None, str]:
        """Return the wanted steps, which are imported if they are new. If they do not
        import, return the earlier steps, and the error.
        """
        used = next((variant.steps for variant in before.values()), None)
        if wanted.serve.digest == (used.digest if used else ""):
            return used, ""
        if wanted.serve.steps is None:
            return None, ""
        try:
            with mark_loading(self.state_dir, Path(wanted.serve.digest)):
                return load_steps(wanted.serve.steps, wanted.serve.file), ""
        except OnnxserveError as error:
            logger.error("%s: %s; the earlier steps remain in use", endpoint, error.message)
            return used, error.message

    def serve(self, name: str, wanted: WantedEndpoint) -> str:
        """Load the versions of a registered model, and return the reason if none can
        answer.
        """
        served, states = self._load_endpoint(name, wanted, {})
        errors = _errors(states)
        if served.answering and not errors:
            self.exchange({name: served})
            return ""
        return "; ".join((errors | wanted.errors).values())

    def exchange(self, added: Mapping[str, ServedEndpoint], removed: Collection[str] = ()) -> None:
        """Add or replace endpoints, remove others, and tell the listeners."""
        if not (added or removed):
            return
        with self._changing:
            kept = {name: entry for name, entry in self.table.items() if name not in removed}
            table = {**kept, **added}
            self.has_pyfuncs = any(
                variant.loaded.predictor.artifact.flavor == PYTHON_FUNCTION
                for variant in _variants(table)
                if not variant.shadow
            )
            self.has_steps = any(variant.steps is not None for variant in _variants(table))
            self._retiring.update(_loaded_versions(self.table) - _loaded_versions(table))
            self.table = table
            for on_change in self._listeners:
                on_change(table)

    def _wait_for_retiring(self, model: str) -> None:
        """Wait some seconds while a replaced version of the model is in memory, so that
        no third version is loaded.
        """
        deadline = time.monotonic() + _MAX_RETIRING_SECONDS
        while time.monotonic() < deadline:
            with self._changing:
                retiring = [version.model for version in self._retiring]
            if model not in retiring or self._stopping.wait(_RETIRING_POLL_SECONDS):
                return


def _with_guard(variant: ServedVariant, refuses: bool) -> ServedVariant:
    """Return the variant with its guard, or unchanged and with a warning if the version
    has no ranges.
    """
    predictor = variant.loaded.predictor
    if RANGES_FILE in predictor.artifact.digests:
        captured = replace(variant.captured, is_guarded=True)
        return replace(variant, guard=Guard(predictor, refuses), captured=captured)
    logger.warning(
        "%s/%s: version %s has no ranges of training rows, so its rows are not guarded: log it "
        "with reference_data of at least 100 rows",
        variant.endpoint,
        variant.name,
        variant.loaded.version,
    )
    return variant


def _variants(table: ServedTable) -> Iterator[ServedVariant]:
    for served in table.values():
        yield from served.variants.values()


def _loaded_versions(table: ServedTable) -> set[LoadedVersion]:
    return {variant.loaded for variant in _variants(table)}


def _errors(states: Mapping[str, LoadedVariant]) -> dict[str, str]:
    return {name: state.error for name, state in states.items() if state.error}


def _identity(version: WantedVariant | LoadedVersion) -> _Identity:
    """Return the model, version, folder, compared digest and Python, which identify a
    version in memory.
    """
    return version.model, version.version, version.folder, version.digest, version.python
