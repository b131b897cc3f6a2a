"""The versions held in this process: load → warm → atomic swap → drop the old when its last request has left.

`Repository` follows `wanted.json`. What it serves is an immutable `Table`, replaced in one assignment: a request takes
one `ServedVariant` out of it and keeps that object until it has answered, so that it is answered by exactly one
version; a version that no table names any more is freed by CPython's reference counting when the last such request
lets go. Whatever fails on the way to a new version leaves the old one serving and is told in this worker's state file.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, no_batch_dimension_reason
from mlflow_deploy_plugin.server.capture.captured_model import exclude_columns
from mlflow_deploy_plugin.server.capture.masking import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.server.models.loading import WarmVersion, load_version
from mlflow_deploy_plugin.server.models.variants import (
    LoadedVersion,
    ServedEndpoint,
    ServedTable,
    ServedVariant,
    has_sticky_column,
    make_served_endpoint,
    sticky_variant,
    weighted_variant,
)
from mlflow_deploy_plugin.statedir import (
    WANTED,
    LoadedVariant,
    Wanted,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
    read_state,
    worker_file,
    write_state,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
_MOST_SHOWN = 20
_NONE: Mapping[str, str] = MappingProxyType({})


class Repository:
    """Holds the versions of one worker.

    Args:
        state_dir: the server's state folder, see `statedir/`.
        load: makes a version ready to answer, from its MLmodel folder (loaded and warmed).
        on_change: called with the new table after every change.

    Attributes:
        state_dir: as it was given.
        has_pyfuncs: some version in memory answers from a side process; one in the shadow keeps nobody waiting.
    """

    def __init__(
        self,
        state_dir: Path,
        load: Callable[[Path], WarmVersion],
        on_change: Callable[[ServedTable], None] = lambda table: None,
    ) -> None:
        self.state_dir = state_dir
        self._load = load
        self._on_change = on_change
        self._table: ServedTable = {}
        self.has_pyfuncs = False
        self._applied: dict[str, WantedEndpoint] = {}
        self._unloaded: tuple[str, ...] = ()
        self._errors: dict[str, dict[str, str]] = {}
        self._generation: int | None = None
        self._seen: tuple[int, int, int] | None = None
        self._state_file = WorkerStateFile(state_dir)
        self._retiring = RetiringVersions()
        self._stopping = threading.Event()
        self._has_dealt = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="onnxserve-repository", daemon=True)

    @property
    def table(self) -> ServedTable:
        return self._table

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Endpoints that a command has taken out of memory, and another may bring back."""
        return self._unloaded

    def start(self) -> None:
        """Follows `wanted.json` in a thread of its own, until `stop`."""
        self._follower.start()

    def wait_until_applied(self, seconds: float) -> bool:
        """Whether, after `seconds` at most, what was wanted at the start is loaded, or could not be, or is nothing."""
        return self._has_dealt.wait(seconds)

    def stop(self) -> None:
        """Ends the thread, lets go of the versions and removes this worker's state file."""
        self._stopping.set()
        if self._follower.is_alive():
            self._follower.join()
        self._table = {}
        self._state_file.remove()

    def select_variant(
        self, endpoint: str | None, draw: float, version: str | None = None, headers: Mapping[str, str] = _NONE
    ) -> ServedVariant:
        """The variant that answers a request; where a column's value chooses it, one to decode with and to `keep` by.

        Args:
            endpoint: None: the only endpoint, or the first of several.
            version: the loaded version that is to answer, whatever its weight; None: the header that the endpoint's
                callers stick by decides, else `draw`.
            headers: by their names in lower case.

        Raises:
            NotReady: nothing is loaded that could answer.
            NotFound: no endpoint of this name, or it has not loaded this version.
        """
        name, served = self.find(endpoint)
        if version is not None:
            for variant in (*served.answering, *served.variants.values()):
                if variant.loaded.version == version:
                    return variant
            held = ", ".join(served.versions) or "none"
            raise NotFound(f"endpoint {name!r} has no version {version[:100]!r} loaded; it has {held}")
        if not served.answering:
            raise NotReady(self.unavailable_reason(name))
        sticky = served.sticky
        if sticky is not None and sticky.header is not None and (key := headers.get(sticky.header)):
            return sticky_variant(served.answering, name, key)
        return weighted_variant(served.answering, draw)

    def sticky_variant(self, variant: ServedVariant, key: str) -> ServedVariant:
        """The variant that answers a request in which `variant`, that of the lease, has read `key`.

        Raises:
            NotReady, NotFound: as `lease`.
        """
        served = self.find(variant.endpoint)[1]
        if not served.answering:
            raise NotReady(self.unavailable_reason(variant.endpoint))
        return sticky_variant(served.answering, variant.endpoint, key)

    def versions(self, endpoint: str) -> tuple[str, ...]:
        """The versions of an endpoint that are in memory.

        Raises:
            NotReady, NotFound: as `lease`.
        """
        return self.find(endpoint)[1].versions

    def find(self, endpoint: str | None) -> tuple[str, ServedEndpoint]:
        """The endpoint and its name; None: the default one.

        Raises:
            NotReady, NotFound: as `lease`.
        """
        table = self._table
        name = next(iter(table), None) if endpoint is None else endpoint
        served = table.get(name) if name is not None else None
        if name is None or served is None:
            if endpoint is None or self._generation is None:
                raise NotReady("no model is loaded yet; ask again in a moment")
            if endpoint in self._unloaded:
                raise NotFound(
                    f"endpoint {endpoint!r} is unloaded; POST /v2/repository/models/{endpoint}/load loads it"
                )
            raise NotFound(f"no endpoint {endpoint[:100]!r} here; there is {_some(table)}")
        return name, served

    def not_ready_reason(self) -> str:
        """Why this worker answers for nobody yet; empty: it does, or nothing is to be served.

        One of many endpoints that has no version says so for itself, and keeps no other from being asked.
        """
        if self._generation is None:
            return "no model is loaded yet; ask again in a moment"
        table = self._table
        if not table or any(not one.loaded.unavailable_reason for served in table.values() for one in served.answering):
            return ""
        return self.unavailable_reason(next(iter(table)))

    def poll(self) -> None:
        """Deals with `wanted.json` if it is another one than at the last look."""
        try:
            status = (self.state_dir / WANTED).stat()
        except FileNotFoundError:
            return
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            wanted = read_state(self.state_dir / WANTED, Wanted)
            self._seen = seen
            if wanted is None:
                logger.error("%s cannot be read; what is served stays as it is", WANTED)
                return
            self._apply(wanted)
        self._state_file.retry()

    def _follow(self) -> None:
        while True:
            try:
                self.poll()
            except Exception:
                logger.exception("dealing with %s failed; what is served stays as it is", WANTED)
            self._has_dealt.set()
            if self._stopping.wait(POLL_SECONDS):
                return

    def _apply(self, wanted: Wanted) -> None:
        for name in [name for name in self._table if name not in wanted.endpoints]:
            self._publish({key: served for key, served in self._table.items() if key != name})
            self._errors.pop(name, None)
            self._applied.pop(name, None)
        for name, endpoint in wanted.endpoints.items():
            if endpoint == self._applied.get(name) and not self._errors[name]:
                continue
            served, self._errors[name] = self._serve(name, endpoint)
            self._applied[name] = endpoint
            self._publish({**self._table, name: served})
        if list(self._table) != list(wanted.endpoints):
            self._publish({name: self._table[name] for name in wanted.endpoints})  # the first one is the default
        self._unloaded = wanted.unloaded
        self._generation = wanted.generation
        self._state_file.publish(self._table, self._errors, wanted.generation)

    def _serve(self, endpoint: str, wanted: WantedEndpoint) -> tuple[ServedEndpoint, dict[str, str]]:
        """The endpoint as wanted, as far as its versions can be loaded, and what went wrong by variant."""
        before = self._table[endpoint].variants if endpoint in self._table else {}
        held = {
            _identity(one.loaded): one.loaded for served in self._table.values() for one in served.variants.values()
        }
        variants, errors = {}, {}
        for name, want in wanted.variants.items():
            loaded = held.get(_identity(want))
            if loaded is None:
                self._retiring.wait(want.model, self._stopping)
                try:
                    loaded = held[_identity(want)] = load_version(self.state_dir, self._load, want)
                except OnnxserveError as error:
                    loaded = before[name].loaded if name in before else None
                    errors[name] = error.message
                    kept = f"version {loaded.version} stays" if loaded else "nothing answers for it"
                    logger.error("%s/%s: %s %s: %s; %s", endpoint, name, want.model, want.version, error.message, kept)
            if loaded is None:
                continue
            capture = wanted.capture
            try:
                captured = exclude_columns(loaded.captured, capture.drop, capture.mask)
                if capture.mask:
                    ColumnMask(self.state_dir / MASK_KEY).ensure_key()
            except InvalidConfig as error:  # to go on without it would write down what is to be left out
                errors[name] = error.message
                logger.error("%s/%s: %s", endpoint, name, error.message)
                if name in before:
                    variants[name] = before[name]
                continue
            variants[name] = ServedVariant(
                endpoint, name, want.weight, want.shadow, loaded, capture, captured, want.aspects
            )
        served = make_served_endpoint(variants, wanted.sticky)
        for one in served.answering:
            if one.key is not None and not has_sticky_column(one.loaded.predictor.schema, one.key):
                text = "%s/%s: version %s takes no column %r that callers could stick by: they go by chance"
                logger.warning(text, endpoint, one.name, one.loaded.version, one.key)
        return served, errors

    def _publish(self, table: ServedTable) -> None:
        variants = (variant for served in table.values() for variant in served.variants.values())
        answering = (one.loaded for one in variants if not one.shadow)
        self.has_pyfuncs = any(loaded.predictor.artifact.flavor == PYTHON_FUNCTION for loaded in answering)
        self._retiring.add_replaced(self._table, table)
        self._table = table
        self._on_change(table)

    def unavailable_reason(self, endpoint: str) -> str:
        """Why no version of the endpoint answers."""
        applied = self._applied.get(endpoint)
        told = (applied.errors if applied else {}) | self._errors.get(endpoint, {})
        return unavailable_reason(endpoint, self._table.get(endpoint), told)


def _identity(version: WantedVariant | LoadedVersion) -> tuple[str, str, Path]:
    """What makes two variants share one version in memory."""
    return version.model, version.version, version.folder


def _some(names: Iterable[str]) -> str:
    """The first few names, as an error shows them."""
    listed = list(names)
    shown = ", ".join(map(repr, listed[:_MOST_SHOWN])) or "none"
    return f"{shown} and {len(listed) - _MOST_SHOWN} more" if len(listed) > _MOST_SHOWN else shown


Errors = Mapping[str, Mapping[str, str]]
"""Endpoint → variant → why the wanted version could not be loaded."""


class WorkerStateFile:
    """The state file of this worker."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._untold: WorkerState | None = None
        self._failure = ""

    def publish(self, table: ServedTable, errors: Errors, generation: int) -> None:
        """Writes down what is served from now on, which is how this worker has dealt with that generation."""
        endpoints = {
            name: {
                variant: _told(served.variants.get(variant), errors.get(name, {}).get(variant, ""))
                for variant in dict.fromkeys([*served.variants, *errors.get(name, {})])
            }
            for name, served in table.items()
        }
        self._untold = WorkerState(pid=os.getpid(), generation=generation, endpoints=endpoints)
        self.retry()

    def retry(self) -> None:
        """Writes what could not be written, on a disk that was full."""
        if self._untold is None:
            return
        try:
            write_state(worker_file(self._state_dir, self._untold.pid), self._untold)
        except OSError as error:
            if (reason := str(error.strerror)) != self._failure:
                logger.error("the state of this worker cannot be written: %s", reason)
            self._failure = reason
            return
        self._untold, self._failure = None, ""

    def remove(self) -> None:
        worker_file(self._state_dir, os.getpid()).unlink(missing_ok=True)


def _told(variant: ServedVariant | None, error: str) -> LoadedVariant:
    if variant is None:
        return LoadedVariant(error=error)
    loaded = variant.loaded
    return LoadedVariant(
        version=loaded.version, error=error, no_batch=no_batch_dimension_reason(loaded.predictor.artifact)
    )


def unavailable_reason(endpoint: str, served: ServedEndpoint | None, told: Mapping[str, str]) -> str:
    """Why nobody answers for the endpoint: what keeps its variants away, and what was told of them."""
    away = {name: variant.loaded.unavailable_reason for name, variant in served.variants.items()} if served else {}
    reasons = "; ".join(f"{variant}: {error}" for variant, error in {**away, **told}.items() if error)
    return f"endpoint {endpoint!r} has no version that answers" + (f": {reasons}" if reasons else "")


_LONGEST_SECONDS, _POLL_SECONDS = 5.0, 0.02


class RetiringVersions:
    """Keeps a third version of a model from being loaded while the first is still in memory."""

    def __init__(self) -> None:
        self._versions: weakref.WeakSet[LoadedVersion] = weakref.WeakSet()

    def add_replaced(self, before: ServedTable, after: ServedTable) -> None:
        """What `before` names and `after` does not is leaving."""
        self._versions.update(_loaded(before) - _loaded(after))

    def wait(self, model: str, stopping: threading.Event) -> None:
        """Returns when no version of the model is leaving, after some seconds at most, or on `stopping`."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while any(one.model == model for one in self._versions) and time.monotonic() < deadline:
            if stopping.wait(_POLL_SECONDS):
                return


def _loaded(table: ServedTable) -> set[LoadedVersion]:
    return {variant.loaded for served in table.values() for variant in served.variants.values()}
