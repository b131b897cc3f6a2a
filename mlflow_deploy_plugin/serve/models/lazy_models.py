"""The registered models of a server, which a worker loads at their first request.

The agent lists the models (`serve/agent/model_list.py`), and fetches the version of a
model when a worker asks for it. The models in memory stay within a limit: the least
recently used models leave when room is needed, except models with a request.
"""

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from mlflow_deploy_plugin.core.errors import NotFound, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION, folder_bytes
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.statedir.files import SERVED, read_state, served_file
from mlflow_deploy_plugin.core.statedir.models import (
    Listed,
    ServedModel,
    WantedEndpoint,
    WantedVariant,
    is_same_model,
)
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.variants import ServedEndpoint, ServedTable

logger = logging.getLogger(__name__)

_AnswerT = TypeVar("_AnswerT")

_LOADERS = 4
_SLOW_SECONDS = 10.0
_SLOW_WAIT_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0
_ROOM_SECONDS = 10.0
_ROOM_POLL_SECONDS = 0.02
_NOTE_SECONDS = 5.0
_OLDEST_SECONDS = 30.0
"""The number of parallel loads, the time after which a failed download was slow, the
longest wait of a request for a slow model, the longest time after which a failed load
is repeated, the longest wait for a model without a request, its poll, the pause
between two notes about the used models, and the bound of the noted time since the last
use.
"""
_MOST_NAMED = 100
_NAMED_REQUESTS = 100
"""The number of models that the metrics count by name, each after this number of
requests. The busiest models get there first.
"""
_SESSION_BYTES = 2**19
_FILE_FACTOR = 2
_TREES_FACTOR = 8
_TREES = b"TreeEnsemble"
_SEARCHED_BYTES = 2**20
_PYFUNC_BYTES = 200 * 2**20
"""The estimated memory of a version: per session, per byte of its files (ONNX Runtime's
trees take 7 times the bytes of their file), and per process of a pyfunc. An operator's
name is in the first bytes of a file. `benchmarks/registry.py` measures the sum.
"""


class ModelTable(Protocol):
    """The models in the memory of a worker (`Repository`)."""

    state_dir: Path
    table: ServedTable

    def serve(self, name: str, wanted: WantedEndpoint) -> str: ...
    def exchange(
        self, added: Mapping[str, ServedEndpoint], removed: Collection[str] = ()
    ) -> None: ...


@dataclass(eq=False, slots=True)
class _Model:
    """A registered model.

    Attributes:
        mark: the mark in `Listed`, and `loaded`, the mark of the version in memory.
        used_at: the monotonic time of the last request.
        count: the number of requests.
        requests: the ids of the requests that the model answers now.
        size: the reserved memory in bytes; 0 if no version is in memory.
        error: the reason why the version of `mark` cannot be served; it is tried again
            at `retry_at`, after `failures` in a row.
        is_slow: True if the last download failed after a long time.
        file: the inode of the file from which a pyfunc was loaded, which the agent
            replaces when the pyfunc is converted; 0 for another model.
    """

    mark: str
    loaded: str = ""
    used_at: float = 0.0
    count: int = 0
    requests: set[int] = field(default_factory=set)
    size: int = 0
    error: str = ""
    retry_at: float = 0.0
    failures: int = 0
    is_slow: bool = False
    file: int = 0
    loading: "Future[ServedEndpoint | None] | None" = None


class LazyModels:
    """The registered models of a worker, within `memory_bytes`.

    Attributes:
        uri: the pattern that selects the models; empty until they are listed.
        limit: the memory of this worker's models.

    Args:
        fetch: asks the agent for a model with a mark. Raises OnnxserveError.
        timeout_seconds: the longest wait of a request for a model.
        fetches: the number of parallel calls of `fetch`, at least 4. Slow models have a
            quarter of them.
    """

    def __init__(
        self,
        repository: ModelTable,
        fetch: Callable[[str, str], None],
        memory_bytes: float,
        timeout_seconds: float,
        fetches: int,
        metrics: Metrics,
    ) -> None:
        self._repository = repository
        self._fetch = fetch
        self.limit = memory_bytes
        self._timeout = timeout_seconds
        self._metrics = metrics
        self.uri = ""
        self._models: dict[str, _Model] = {}
        self._is_complete = False
        self._named: set[str] = set()
        self._failed: set[str] = set()
        self._noted_at = 0.0
        self._has_evicted = False
        self._lock = threading.Lock()
        self._loaders = ThreadPoolExecutor(_LOADERS, "onnxserve-load")
        self._fetchers = ThreadPoolExecutor(fetches - fetches // 4, "onnxserve-fetch")
        self._slow_fetchers = ThreadPoolExecutor(fetches // 4, "onnxserve-slow")
        self._loading = threading.Semaphore(_LOADERS)

    def find(self, name: str) -> ServedEndpoint:
        """Return the model's endpoint, which is loaded if it is not in memory.

        Raises NotFound for a model that is not listed, and NotReady if it cannot be
        loaded, or not in time.
        """
        model = self._models.get(name)
        if model is None:
            if not self._is_complete:
                raise NotReady("the registered models are being listed; retry in a moment", 1)
            raise NotFound(
                f"the registered model {name[:100]!r} does not exist, or is not served here; POST "
                "/v2/repository/index lists the models"
            )
        model.used_at = time.monotonic()
        served = self._repository.table.get(name)
        if served is None and model.used_at >= model.retry_at:
            # Requests for slow models do not take the threads of other requests.
            timeout = min(self._timeout, _SLOW_WAIT_SECONDS) if model.is_slow else self._timeout
            try:
                served = self._start(name, model).result(timeout)
            except TimeoutError:
                raise NotReady(f"model {name!r} is being loaded; retry in a moment", 1) from None
        if served is None:
            reason = model.error or "it has left the list"
            wait_seconds = max(0, int(model.retry_at - time.monotonic()))
            raise NotReady(f"model {name!r} cannot be served: {reason}", wait_seconds + 1)
        return served

    def must_load(self, name: str) -> bool:
        """Return True if a request for this endpoint waits until a model is loaded."""
        return name in self._models and name not in self._repository.table

    def is_named(self, name: str) -> bool:
        """Return True if the metrics count the model by its name."""
        return name in self._named

    def hold(self, name: str, request: RawRequest) -> None:
        """Keep the model in memory until `release` is called for the request."""
        if model := self._models.get(name):
            model.used_at = time.monotonic()
            model.count += 1
            model.requests.add(id(request))

    def release(self, name: str, request: RawRequest) -> None:
        if model := self._models.get(name):
            model.requests.discard(id(request))

    def holding(
        self, name: str, answer: Callable[[RawRequest], _AnswerT]
    ) -> Callable[[RawRequest], _AnswerT]:
        """Return the function `answer`, during which the model is held and used."""

        def answer_holding(request: RawRequest) -> _AnswerT:
            self.hold(name, request)
            try:
                return answer(request)
            finally:
                self.release(name, request)

        return answer_holding

    def index(self) -> Iterator[dict[str, str]]:
        """Yield the name, version, state and reason of each model. A ready model has a
        reason if its newest version cannot be served.
        """
        for name, model in self._models.items():
            served = self._repository.table.get(name)
            version = model.mark.partition(" ")[0]
            reason = model.error
            if served is not None:
                state = "READY"
                version = served.versions[0]
            elif model.loading is not None:
                state = "LOADING"
            else:
                state = "UNAVAILABLE"
                reason = reason or "not in memory; the next request loads it"
            yield {"name": name, "version": version, "state": state, "reason": reason}

    def sizes(self) -> dict[str, int]:
        """Return the reserved memory of each model in bytes; 0 for a model that is not
        in memory.
        """
        return {name: model.size for name, model in self._models.items()}

    def follow(self, listed: Listed) -> None:
        """Serve the models of a new list, and retry at once the models that failed and
        have changed. Models that have left the list leave the memory.
        """
        models = {}
        for name, mark in listed.models.items():
            model = self._models.get(name)
            if model is None or not is_same_model(model.mark, mark):
                model = _Model(mark)
            elif model.mark != mark:
                model.mark = mark
                model.error = ""
                model.retry_at = 0.0
                model.failures = 0
            models[name] = model
        before = self._models
        self._models = models
        table = self._repository.table
        gone = [name for name in table if models.get(name) is not before.get(name)]
        self._repository.exchange({}, gone)
        self._is_complete = listed.is_complete
        is_first = not self.uri
        self.uri = listed.uri
        if is_first:
            threading.Thread(target=self._load_recent, name="onnxserve-recent", daemon=True).start()

    def poll(self) -> None:
        """Load the models in memory whose version has changed, and report the memory
        and the uses of the models.
        """
        now = time.monotonic()
        in_memory = self._in_memory()
        for name in in_memory:
            model = self._models[name]
            if model.file and self._inode(name) not in (0, model.file):
                model.loaded = ""
                model.file = 0
            if model.loaded != model.mark and now >= model.retry_at:
                self._start(name, model)
        self._metrics.set_models(len(in_memory), sum(self.sizes().values()), self.limit)
        if now - self._noted_at >= _NOTE_SECONDS:
            self._note_uses(now)
            self._noted_at = now

    def _start(self, name: str, model: _Model) -> "Future[ServedEndpoint | None]":
        """Start to load the model unless it is being loaded, and return its future."""
        with self._lock:
            if model.loading is None:
                pool = self._slow_fetchers if model.is_slow else self._fetchers
                # Models on this disk do not wait for downloads.
                if _is_here(self._saved(name), model.mark):
                    pool = self._loaders
                model.loading = pool.submit(self._load, name, model)
            return model.loading

    def _inode(self, name: str) -> int:
        """Return the inode of a model's file; 0 if there is no file."""
        with suppress(OSError):
            return served_file(self._repository.state_dir, name).stat().st_ino
        return 0

    def _saved(self, name: str) -> ServedModel | None:
        return read_state(served_file(self._repository.state_dir, name), ServedModel)

    def _load(self, name: str, model: _Model) -> ServedEndpoint | None:
        """Load the model's version, or the version before it if it cannot be served,
        and return the endpoint, if any. Runs in a thread of a pool.
        """
        mark = model.mark
        error = ""
        if model.loaded != mark or name not in self._repository.table:
            began = time.monotonic()
            try:
                error = self._load_file(name, model, mark)
            except Exception as failure:
                logger.exception("%s: loading failed", name)
                error = f"loading failed unexpectedly: {type(failure).__name__}, see the log"
            failed = ""
            if error:
                if len(self._failed) < _MOST_NAMED:
                    self._failed.add(name)
                failed = name if name in self._failed else "other"
            self._metrics.count_load(time.monotonic() - began, failed)
        model.error = error
        if error:
            logger.error("%s: %s", name, error)
            model.failures += 1
            pause = backoff_seconds(model.failures, _LONGEST_RETRY_SECONDS)
            model.retry_at = time.monotonic() + pause
        else:
            model.loaded = mark
            model.failures = 0
        if self._models.get(name) is not model:  # It left the list, or was replaced.
            self._repository.exchange({}, [name])
        served = self._repository.table.get(name)
        if served is None:
            model.size = 0
        with self._lock:  # `_start` may not have stored the future yet.
            model.loading = None
        return served

    def _load_file(self, name: str, model: _Model, mark: str) -> str:
        """Load the model from its file, which the agent writes if the file lacks the
        version of `mark`. Return the reason if this version cannot be served.
        """
        saved = self._saved(name)
        error = ""
        if not _is_here(saved, mark):
            began = time.monotonic()
            try:
                self._fetch(name, mark)
                model.is_slow = False
            except OnnxserveError as failure:
                error = failure.message
                model.is_slow = time.monotonic() - began >= _SLOW_SECONDS
        inode = self._inode(name)
        saved = self._saved(name)
        if saved is None or not is_same_model(saved.mark, mark):
            return error or "the agent has not written its file"
        model.file = 0
        if any(map(_is_pyfunc, saved.endpoint.variants.values())):
            model.file = inode
        with self._loading:
            reason = self._load_endpoint(name, model, saved.endpoint)
            if reason and saved.previous is not None and name not in self._repository.table:
                self._load_endpoint(name, model, saved.previous)
        return error or reason

    def _load_endpoint(self, name: str, model: _Model, endpoint: WantedEndpoint) -> str:
        """Load the versions of an endpoint when there is room; return the reason if
        they cannot be served.
        """
        size = sum(map(estimated_bytes, endpoint.variants.values()))
        if not self._make_room(model, size):
            return (
                f"it needs about {size:,} bytes of memory; server.model_memory allows a worker "
                f"{self.limit:,}, and the models in memory are answering requests"
            )
        before = model.size - size
        reason = self._repository.serve(name, endpoint)
        model.size = before if reason else size
        return reason

    def _in_memory(self) -> set[str]:
        return self._models.keys() & self._repository.table.keys()

    def _make_room(self, model: _Model, size: int) -> bool:
        """Reserve memory for a model, for which the least recently used models leave,
        and at last the model's earlier version. Return False if there is no room.
        """
        until = time.monotonic() + _ROOM_SECONDS
        while True:
            with self._lock:
                models = self._models
                room = self.limit - sum(each.size for each in models.values())
                loaded = [(models[name], name) for name in self._in_memory()]
                loaded.sort(key=lambda entry: (entry[0] is model, entry[0].used_at))
                evicted = []
                for other, name in loaded:
                    if room >= size:
                        break
                    if not other.requests and (other is model or not other.loading):
                        evicted.append((other, name))
                        room += other.size
                if room >= size:
                    for other, _ in evicted:
                        other.size = 0
                    model.size += size
                    if evicted:
                        self._has_evicted = True
                        self._metrics.count_models_left(len(evicted))
                        self._repository.exchange({}, [name for _, name in evicted])
                    return True
            if size > self.limit or time.monotonic() >= until:
                return False
            time.sleep(_ROOM_POLL_SECONDS)

    def _load_recent(self) -> None:
        """Load the models that were used before the start, the last used first, until
        the memory is full.
        """
        folder = self._repository.state_dir / SERVED
        files = [(file.stat().st_mtime, file) for file in folder.glob("[!.]*.json")]
        for _, file in sorted(files, reverse=True):
            saved = read_state(file, ServedModel)
            if saved is None or saved.name not in self._models:
                continue
            size = sum(map(estimated_bytes, saved.endpoint.variants.values()))
            if sum(each.size for each in self._models.values()) + size > self.limit:
                return
            wait([self._start(saved.name, self._models[saved.name])])

    def _note_uses(self, now: float) -> None:
        """Note the last use of each model in the time of its file, give a name in the
        metrics to busy models, and return the memory of models that have left. `now` is
        a monotonic time.
        """
        if self._has_evicted:
            self._has_evicted = False
            # glibc keeps holes, which took a third of the memory after 500 loads.
            with suppress(AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
        for name in self._in_memory():
            model = self._models[name]
            # Models in memory keep their files (`ModelList.release`). Hence the noted
            # age has an upper bound, and the order of the models is that of their uses.
            age = now - model.used_at
            moment = time.time() - age * _OLDEST_SECONDS / (age + _OLDEST_SECONDS)
            with suppress(OSError):
                os.utime(served_file(self._repository.state_dir, name), (moment, moment))
            is_busy = model.count >= _NAMED_REQUESTS and len(self._named) < _MOST_NAMED
            if not is_busy or name in self._named:
                continue
            with self._lock:  # The model may be leaving or be replaced.
                served = self._repository.table.get(name)
                if served is not None and model.loading is None:
                    self._named.add(name)
                    self._repository.exchange({name: served.named()})


def _is_here(saved: ServedModel | None, mark: str) -> bool:
    """Return True if the version of `mark` is on this disk."""
    if saved is None or saved.mark != mark:
        return False
    return all(want.folder.exists() for want in saved.endpoint.variants.values())


def _is_pyfunc(want: WantedVariant) -> bool:
    return want.aspects.get("flavor") == PYTHON_FUNCTION


def estimated_bytes(want: WantedVariant) -> int:
    """Return the estimated memory of a version on this disk."""
    if _is_pyfunc(want):
        return _PYFUNC_BYTES
    factor = _FILE_FACTOR
    for graph in want.folder.rglob("*.onnx"):
        with graph.open("rb") as file:
            if _TREES in file.read(_SEARCHED_BYTES):
                factor = _TREES_FACTOR
    return _SESSION_BYTES + factor * folder_bytes(want.folder)
