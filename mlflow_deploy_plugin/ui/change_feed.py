"""The change feed in MLflow's server, which agents follow instead of polling
(`core/registry/change_feed.py`).

A Flask view checks the caller's permissions and registers a subscription. An ASGI
middleware around all other apps replaces the view's answer with the events, so that an
open stream does not occupy a thread. One thread per worker reads
`Store.recent_changes`, resolves the URIs of changed models in MLflow's own store, and
passes new results to the subscriptions. It also resolves all URIs every few seconds, to
find changes that were made without this app. The thread resolves URIs in short slices,
in which callers take turns, so that a caller with many URIs does not delay the others.
"""

import asyncio
import logging
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from fnmatch import filter as filter_names
from functools import partial
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from flask import Flask, Response, jsonify, request

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    ScopeMissing,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.registry.change_feed import HEARTBEAT_SECONDS, MAX_URIS, event_bytes
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.settings import active_workspace
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.guard.mlflow_stores import registry

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WATCH_SECONDS = 0.1
_RESOLVE_SECONDS = 10.0
_STALE_SECONDS = 30.0
"""The pauses between two reads of the counters, and between two resolutions of all
URIs. A stream ends if the registry has not answered for `_STALE_SECONDS`, so that the
client finds changes itself.
"""
_STREAM_SECONDS = 600.0
"""The time after which a stream ends, so that the client's permissions are checked
again.
"""
_WAKE_SECONDS = 0.5
_DUE_AT_ONCE = 20
"""The number of URIs that are resolved regularly between two reads of the counters. A
resolution takes about 2 ms.
"""
_SLICE_SECONDS = 0.2
"""The time for new and changed URIs, and the time for regular resolutions, between two
reads of the counters. The resolution of a tag took 31 ms in a large registry.
"""
_MAX_STREAMS = 2000
_MAX_STREAMS_OF_CALLER = 1000
"""The limit of a caller leaves streams for others. All servers of a company may have
the same account.
"""
_MAX_URIS_OF_CALLER = 5 * MAX_URIS
"""The number of URIs that are resolved in `_RESOLVE_SECONDS` at 2 ms each."""
_HEADERS = {
    "Cache-Control": "no-store",
    # Without this header, nginx would collect events before it sends them.
    "X-Accel-Buffering": "no",
}

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Subscription:
    """A stream of a client.

    Attributes:
        models: each URI → the registered model.
        caller: the account, or the address without accounts.
        context: the context of the request, with its workspace.
        due: the URIs that must be resolved, because they are new or their model has
            changed.
        results: the last result of each URI.
        answered_at: the last time at which the registry answered; initially the time of
            the request.
    """

    models: Mapping[str, str]
    caller: str
    store: Store
    workspace: str
    context: Context
    due: set[str]
    results: dict[str, ResolvedModel | None] = field(default_factory=dict)
    unsent: dict[str, ResolvedModel | None] = field(default_factory=dict)
    wake: Callable[[], object] = lambda: None
    answered_at: float = field(default_factory=time.monotonic)

    def expect(self, changed: set[str]) -> None:
        """Resolve the URIs of changed models again. A pattern selects no version: the
        client lists its models after each event.
        """
        for uri, model in self.models.items():
            if model in changed:
                self.due.add(uri)
            elif "*" in model and filter_names(changed, model):
                self.results.pop(uri, None)
                self.due.add(uri)


@dataclass
class _Watched:
    """The counters of the models of a workspace, and the URIs of each caller that wait
    for a regular resolution.

    Attributes:
        due_at: each caller → the time of the next regular resolution of its URIs.
    """

    counts: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, set[str]] = field(default_factory=dict)
    due_at: dict[str, float] = field(default_factory=dict)

    def next_waiting(self, subscriptions: Sequence[_Subscription], now: float) -> list[str]:
        """Return the URIs that are resolved regularly now. They wait until they are
        removed from `waiting`.
        """
        models: defaultdict[str, list[Mapping[str, str]]] = defaultdict(list)
        for subscription in subscriptions:
            models[subscription.caller].append(subscription.models)
        self.waiting = {caller: self.waiting.get(caller, set()) for caller in models}
        self.due_at = {caller: self.due_at.get(caller, now) for caller in models}
        for caller, followed in models.items():
            if not self.waiting[caller] and now >= self.due_at[caller]:
                self.waiting[caller] = set().union(*followed)
                self.due_at[caller] = now + _RESOLVE_SECONDS
        return [*islice(_in_turn(self.waiting.values()), _DUE_AT_ONCE)]

    def read_changes(self, store: Store, is_reported: bool) -> set[str]:
        """Read the counters, and return the models whose counters have changed. An
        error of the store is logged if `is_reported`.
        """
        before = dict(self.counts)
        try:
            self.counts |= store.recent_changes()
        except OnnxserveError as error:
            if is_reported:
                _log.warning(
                    "the change feed reads the registry every %g s: %s",
                    _RESOLVE_SECONDS,
                    error.message,
                )
        return {model for model, count in self.counts.items() if before.get(model) != count}


_subscribed: ContextVar[list[_Subscription] | None] = ContextVar("subscribed", default=None)
"""The subscriptions that the view registers in the current request. A WSGI server does
not have this list.
"""


class ChangeFeed:
    """The subscriptions of this worker, and the thread that watches their models."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[_Subscription] = set()
        self._thread: threading.Thread | None = None

    def install(self, served: "Flask | FastAPI", path: str) -> None:
        """Prepare the app that contains the view of `path`, so that streams replace the
        answers of `subscribe`. A WSGI server would need a thread for each open stream.
        """
        if isinstance(served, Flask):
            return
        from starlette.responses import StreamingResponse  # A WSGI server does not need Starlette.

        def enclose(app: "ASGIApp") -> "ASGIApp":
            async def enclosing(scope: "Scope", receive: "Receive", send: "Send") -> None:
                """Call the app. If its view has subscribed the client, send the stream
                instead of the answer, and unsubscribe afterwards.
                """
                if scope["type"] != "http" or scope["path"] != path:
                    await app(scope, receive, send)
                    return
                subscribed: list[_Subscription] = []
                _subscribed.set(subscribed)

                async def send_unless_subscribed(message: "Message") -> None:
                    if not subscribed:
                        await send(message)

                try:
                    await app(scope, receive, send_unless_subscribed)
                    if subscribed:
                        response = StreamingResponse(
                            self._events(subscribed[0]),
                            200,
                            _HEADERS,
                            "text/event-stream",
                        )
                        async with asyncio.timeout(2 * _STREAM_SECONDS):  # The client may not read.
                            await response(scope, receive, send)
                finally:
                    with self._lock:
                        self._open.difference_update(subscribed)

            return enclosing

        served.add_middleware(enclose)

    def subscribe(self, store: Store) -> Response:
        """Register the URIs of the current request, whose answer the middleware then
        replaces with the stream.

        Raises NotFound on a WSGI server, InvalidConfig for URIs that no agent can
        follow, ScopeMissing for a model that the caller may not read, and
        TooManyRequests.
        """
        subscribed = _subscribed.get()
        if subscribed is None:
            raise NotFound("the change feed needs uvicorn, the default server of MLflow")
        uris = {text: parse_model_uri(text) for text in request.args.getlist("uri")}
        if not 0 < len(uris) <= MAX_URIS or not all(uri.followed for uri in uris.values()):
            raise InvalidConfig(
                f"the change feed needs 1 to {MAX_URIS:,} URIs of stages, aliases or tags"
            )
        models = {text: uri.name for text, uri in uris.items()}
        for model in models.values():
            if not access.may_read(model):
                raise ScopeMissing(f"you may not read the model {model}")
        subscription = _Subscription(
            models=models,
            caller=access.caller().actor,
            store=store,
            workspace=active_workspace(),
            context=copy_context(),
            due=set(models),
        )
        with self._lock:
            if len(self._open) >= _MAX_STREAMS:
                raise TooManyRequests(f"this worker has {_MAX_STREAMS:,} open streams")
            of_caller = [added for added in self._open if added.caller == subscription.caller]
            if len(of_caller) >= _MAX_STREAMS_OF_CALLER:
                raise TooManyRequests(
                    f"{subscription.caller} already has {_MAX_STREAMS_OF_CALLER:,} open streams "
                    "of this worker"
                )
            followed = set(models).union(*(added.models for added in of_caller))
            if len(followed) > _MAX_URIS_OF_CALLER:
                raise TooManyRequests(
                    f"{subscription.caller} already follows so many URIs that there would be more "
                    f"than {_MAX_URIS_OF_CALLER:,} of them in this worker: close other streams "
                    "first"
                )
            subscribed.append(subscription)
            self._open.update(subscribed)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch,
                    name="onnxserve-changes",
                    daemon=True,
                )
                self._thread.start()
        return jsonify()

    async def _events(self, subscription: _Subscription) -> AsyncIterator[bytes]:
        """Yield the events of a subscription until the server stops, the registry is
        down, or the time is over.
        """
        arrived = asyncio.Event()
        subscription.wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
        last_sent = time.monotonic()
        end = last_sent + _STREAM_SECONDS * random.uniform(0.8, 1.2)
        # uvicorn waits for open streams when it stops. Its `Server` handles SIGTERM in
        # each worker.
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        while not getattr(server, "should_exit", False):
            if time.monotonic() >= min(end, subscription.answered_at + _STALE_SECONDS):
                break
            arrived.clear()
            with self._lock:
                unsent = subscription.unsent
                subscription.unsent = {}
            if unsent or time.monotonic() - last_sent > HEARTBEAT_SECONDS:
                yield event_bytes(unsent)
                last_sent = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), _WAKE_SECONDS)

    def _watch(self) -> None:
        """Update the subscriptions of each workspace forever."""
        watched: defaultdict[str, _Watched] = defaultdict(_Watched)
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                subscriptions = [*self._open]
            for workspace in {subscription.workspace for subscription in subscriptions}:
                members = [
                    subscription
                    for subscription in subscriptions
                    if subscription.workspace == workspace
                ]
                try:
                    members[0].context.run(self._update, members, watched[workspace])
                except Exception:  # noqa: BLE001 - The thread must survive every error of the two databases.
                    _log.exception("the change feed cannot read the changes of the registry")

    def _update(self, subscriptions: Sequence[_Subscription], watched: _Watched) -> None:
        """Resolve URIs that are new or may have changed, and some of the others. Pass
        new results to subscriptions.
        """
        begun_at = time.monotonic()
        waiting = watched.next_waiting(subscriptions, begun_at)
        if changed := watched.read_changes(subscriptions[0].store, is_reported=bool(waiting)):
            for subscription in subscriptions:
                subscription.expect(changed)
        # Resolve the URIs of each caller in turn. Begin with the streams that have the
        # fewest URIs.
        due_by_caller: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for subscription in sorted(subscriptions, key=lambda item: len(item.due)):
            if subscription.due:
                due_by_caller[subscription.caller] |= dict.fromkeys(subscription.due)
        due = _resolve(_in_turn(due_by_caller.values()))
        results = due | _resolve(uri for uri in waiting if uri not in due)
        for uris in watched.waiting.values():
            uris.difference_update(results)
        has_answered = bool(results) and None not in results.values()
        for subscription in subscriptions:
            subscription.due -= due.keys()
            if has_answered:
                subscription.answered_at = begun_at
            changes: dict[str, ResolvedModel | None] = {}
            for uri in subscription.models.keys() & results.keys():
                answer = results[uri]
                if answer and (uri, answer.selected) not in subscription.results.items():
                    changes[uri] = answer.selected
            if changes:
                subscription.results |= changes
                with self._lock:
                    subscription.unsent |= changes
                subscription.wake()


@dataclass(frozen=True)
class _Answer:
    """The version that a URI selects. With None, the agent finds the reason itself."""

    selected: ResolvedModel | None


def _resolve(uris: Iterable[str]) -> dict[str, _Answer | None]:
    """Resolve URIs in this process, at least one, until `_SLICE_SECONDS` are over. None
    means no answer.
    """
    results: dict[str, _Answer | None] = {}
    end = time.monotonic() + _SLICE_SECONDS
    for uri in uris:
        try:
            results[uri] = _Answer(resolve(uri, registry()))
        except (NotFound, InvalidConfig):
            results[uri] = _Answer(None)
        except OnnxserveError:
            results[uri] = None  # The database does not answer.
        if time.monotonic() > end:
            break
    return results


def _in_turn(queues: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield each URI once: the first of each queue, then the second of each queue, and
    so on.
    """
    yielded: set[str | None] = {None}
    for turn in zip_longest(*queues):
        for uri in turn:
            if uri is not None and uri not in yielded:
                yielded.add(uri)
                yield uri
