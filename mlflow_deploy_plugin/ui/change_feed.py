"""The change feed in MLflow's server, which agents follow instead of polling (`registry/change_feed.py`).

A Flask view checks the caller's permissions and registers a subscription. An ASGI middleware around all other apps
replaces the view's answer with the events, so that an open stream does not occupy a thread. One thread per worker reads
`Store.recent_changes`, resolves the URIs of changed models in MLflow's own store, and passes new results to the
subscriptions. It also resolves all URIs every few seconds, to find changes that were made without this app.
"""

import asyncio
import logging
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, Response, jsonify, request

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, ScopeMissing, TooManyRequests
from mlflow_deploy_plugin.registry import ResolvedModel, parse_model_uri, resolve
from mlflow_deploy_plugin.registry.change_feed import HEARTBEAT_SECONDS, MAX_URIS, event_bytes
from mlflow_deploy_plugin.settings import active_workspace
from mlflow_deploy_plugin.store import Store
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.guard import registry

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WATCH_SECONDS, _RESOLVE_SECONDS, _STALE_SECONDS = 0.1, 10.0, 30.0
"""The pauses between two reads of the counters, and between two resolutions of all URIs. A stream ends if the registry
has not answered for `_STALE_SECONDS`, so that the client finds changes itself."""
_STREAM_SECONDS = 600.0
"""The time after which a stream ends, so that the client's permissions are checked again."""
_WAKE_SECONDS = 0.5
_DUE_AT_ONCE = 20
"""The number of URIs that are resolved regularly between two reads of the counters. A resolution takes about 2 ms."""
_MAX_STREAMS = 2000
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # Without this header, nginx would collect events before it sends them.
}

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Subscription:
    """A stream of a client.

    Attributes:
        models: each URI → the registered model.
        context: the context of the request, with its workspace.
        known: the last result of each URI.
        answered_at: the last time at which the registry answered; initially the time of the request.
    """

    models: Mapping[str, str]
    store: Store
    workspace: str
    context: Context
    known: dict[str, ResolvedModel | None] = field(default_factory=dict)
    unsent: dict[str, ResolvedModel | None] = field(default_factory=dict)
    wake: Callable[[], object] = lambda: None
    is_new: bool = True
    answered_at: float = field(default_factory=time.monotonic)


@dataclass
class _Watched:
    """The counters of the models of a workspace, and the URIs that wait for their regular resolution."""

    counts: dict[str, int] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    due_at: float = 0.0


_subscribed: ContextVar[list[_Subscription] | None] = ContextVar("subscribed", default=None)
"""The subscriptions that the view registers in the current request. A WSGI server does not have this list."""


class ChangeFeed:
    """The subscriptions of this worker, and the thread that watches their models."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[_Subscription] = set()
        self._thread: threading.Thread | None = None

    def install(self, served: "Flask | FastAPI", path: str) -> None:
        """Prepare the app that contains the view of `path`. A WSGI server would need a thread for each open stream."""
        if not isinstance(served, Flask):
            served.add_middleware(self._enclose, path=path)

    def subscribe(self, store: Store) -> Response:
        """Register the URIs of the current request, whose answer the middleware then replaces with the stream.

        Raises NotFound on a WSGI server, InvalidConfig for URIs that no agent can follow, ScopeMissing for a model that
        the caller may not read, and TooManyRequests.
        """
        if (subscribed := _subscribed.get()) is None:
            raise NotFound("the change feed needs uvicorn, the default server of MLflow")
        uris = {text: parse_model_uri(text) for text in request.args.getlist("uri")}
        if not 0 < len(uris) <= MAX_URIS or not all(uri.followed for uri in uris.values()):
            raise InvalidConfig(f"the change feed needs 1 to {MAX_URIS:,} URIs of stages, aliases or tags")
        models = {text: uri.name for text, uri in uris.items()}
        if hidden := [model for model in models.values() if not access.may_read(model)]:
            raise ScopeMissing(f"you may not read the model {hidden[0]}")
        with self._lock:
            if len(self._open) >= _MAX_STREAMS:
                raise TooManyRequests(f"this worker has {_MAX_STREAMS:,} open streams")
            subscribed.append(_Subscription(models, store, active_workspace(), copy_context()))
            self._open.update(subscribed)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="onnxserve-changes", daemon=True)
                self._thread.start()
        return jsonify()

    def _enclose(self, app: "ASGIApp", path: str) -> "ASGIApp":
        """Return `app`, except that the answers of `subscribe` at `path` are replaced with streams."""
        from starlette.responses import StreamingResponse  # A WSGI server does not need Starlette.

        async def enclosing(scope: "Scope", receive: "Receive", send: "Send") -> None:
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
                    response = StreamingResponse(self._events(subscribed[0]), 200, _HEADERS, "text/event-stream")
                    async with asyncio.timeout(2 * _STREAM_SECONDS):  # The client may not read.
                        await response(scope, receive, send)
            finally:
                with self._lock:
                    self._open.difference_update(subscribed)

        return enclosing

    async def _events(self, subscription: _Subscription) -> AsyncIterator[bytes]:
        """Yield the events of a subscription until the server stops, the registry is down, or the time is over."""
        arrived = asyncio.Event()
        subscription.wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
        last_sent = time.monotonic()
        end = last_sent + _STREAM_SECONDS * random.uniform(0.8, 1.2)
        while time.monotonic() < min(end, subscription.answered_at + _STALE_SECONDS) and not _is_stopping():
            arrived.clear()
            with self._lock:
                unsent, subscription.unsent = subscription.unsent, {}
            if unsent or time.monotonic() - last_sent > HEARTBEAT_SECONDS:
                yield event_bytes(unsent)
                last_sent = time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(arrived.wait(), _WAKE_SECONDS)

    def _watch(self) -> None:
        watched: defaultdict[str, _Watched] = defaultdict(_Watched)
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                subscriptions = [*self._open]
            for workspace in {subscription.workspace for subscription in subscriptions}:
                members = [subscription for subscription in subscriptions if subscription.workspace == workspace]
                try:
                    members[0].context.run(self._update, members, watched[workspace])
                except Exception:  # noqa: BLE001 - The thread must survive every error of the two databases.
                    _log.exception("the change feed cannot read the changes of the registry")

    def _update(self, subscriptions: Sequence[_Subscription], watched: _Watched) -> None:
        """Resolve the URIs that may have changed, and some of the others. Pass new results to the subscriptions."""
        begun_at, before = time.monotonic(), dict(watched.counts)
        if not watched.waiting and begun_at > watched.due_at:
            watched.waiting = sorted({uri for subscription in subscriptions for uri in subscription.models})
            watched.due_at = begun_at + _RESOLVE_SECONDS
        due, watched.waiting = watched.waiting[:_DUE_AT_ONCE], watched.waiting[_DUE_AT_ONCE:]
        try:
            watched.counts |= subscriptions[0].store.recent_changes()
        except OnnxserveError as error:
            if due:
                _log.warning("the change feed reads the registry every %g s: %s", _RESOLVE_SECONDS, error.message)
        changed = {model for model, count in watched.counts.items() if before.get(model) != count}
        uris = {
            uri
            for subscription in subscriptions
            for uri, model in subscription.models.items()
            if subscription.is_new or model in changed
        }
        if not uris and not due:
            return
        results = _resolve(uris.union(due))
        has_answered = bool(due) and results.keys() >= set(due)
        for subscription in subscriptions:
            subscription.is_new = False
            if has_answered:
                subscription.answered_at = begun_at
            known, shared = subscription.known, subscription.models.keys() & results.keys()
            if news := {uri: results[uri] for uri in shared if (uri, results[uri]) not in known.items()}:
                known |= news
                with self._lock:
                    subscription.unsent |= news
                subscription.wake()


def _resolve(uris: Iterable[str]) -> dict[str, ResolvedModel | None]:
    """Resolve URIs in this process. An agent finds the reason for None itself. URIs without an answer are omitted."""
    results: dict[str, ResolvedModel | None] = {}
    for uri in uris:
        try:
            results[uri] = resolve(uri, registry())
        except (NotFound, InvalidConfig):
            results[uri] = None
        except OnnxserveError:
            continue  # The database does not answer.
    return results


def _is_stopping() -> bool:
    """Return True if uvicorn stops, which waits for open streams. Its `Server` handles SIGTERM in each worker."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
