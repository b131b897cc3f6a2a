"""The change feed in MLflow's server, which agents follow instead of polling (`registry/change_feed.py`).

A Flask view checks the caller's permissions and registers a subscription. An ASGI middleware around all other apps
replaces the view's answer with the events, so that an open stream does not occupy a thread. One thread per worker reads
the counters of `store/changes.py`, resolves the URIs of changed models in MLflow's own store, and passes new results to
the subscriptions. It also resolves all URIs every few seconds, to find changes that were made without this app.
"""

import asyncio
import logging
import random
import secrets
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, jsonify, request

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError, ScopeMissing, TooManyRequests
from mlflow_deploy_plugin.registry import ResolvedModel, parse_model_uri
from mlflow_deploy_plugin.registry.change_feed import HEARTBEAT_SECONDS, MAX_URIS, event_bytes
from mlflow_deploy_plugin.registry.connection import registry_client_is
from mlflow_deploy_plugin.registry.resolution import BatchResolver
from mlflow_deploy_plugin.settings import active_workspace
from mlflow_deploy_plugin.store import RegistryChanges, Store
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.guard import registry

if TYPE_CHECKING:
    from fastapi import FastAPI

_WATCH_SECONDS, _RESOLVE_SECONDS, _STALE_SECONDS = 0.1, 10.0, 30.0
_STREAM_SECONDS = 600.0
"""The time after which a stream ends, so that the client's permissions are checked again."""
_WAKE_SECONDS = 0.5
_MAX_STREAMS, _UNOPENED_SECONDS = 2000, 60.0
_TOKEN = "x-onnxserve-subscription"
_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # Without this header, nginx would collect events before it sends them.
    ],
}
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_AsgiApp = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Subscription:
    """A stream of a client.

    Attributes:
        models: each URI → the registered model.
        context: the context of the request, with its workspace.
        known: the last result of each URI.
        resolved_at: the last time at which all URIs were resolved; initially the time of the request.
    """

    models: Mapping[str, str]
    store: Store
    workspace: str
    context: Context
    known: dict[str, ResolvedModel | None] = field(default_factory=dict)
    unsent: dict[str, ResolvedModel | None] = field(default_factory=dict)
    wake: Callable[[], object] = lambda: None
    is_new: bool = True
    created_at: float = field(default_factory=time.monotonic)
    resolved_at: float = field(default_factory=time.monotonic)

    @property
    def is_stale(self) -> bool:
        """Return True if the registry has not answered for some time, so that the client must find changes itself."""
        return time.monotonic() - self.resolved_at > _STALE_SECONDS


@dataclass
class _Watched:
    """What the thread knows about a workspace: the counters of its models, and the time when all URIs were resolved."""

    counts: dict[str, int] = field(default_factory=dict)
    resolved_at: float = 0.0


class ChangeFeed:
    """The subscriptions of this worker, and the thread that watches their models."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unopened: dict[str, _Subscription] = {}
        self._open: set[_Subscription] = set()
        self._thread: threading.Thread | None = None
        self._has_middleware = False

    def install(self, served: "Flask | FastAPI", path: str) -> None:
        """Prepare the app that contains the view of `path`. A WSGI server would need a thread for each open stream."""
        if not isinstance(served, Flask):
            served.add_middleware(self._enclose, path=path)
            self._has_middleware = True

    def subscribe(self, store: Store) -> Response:
        """Register the URIs of the current request, and answer with the token for `FeedMiddleware`.

        Raises NotFound on a WSGI server, InvalidConfig for URIs that no agent can follow, ScopeMissing for a model that
        the caller may not read, and TooManyRequests.
        """
        if not self._has_middleware:
            raise NotFound("the change feed needs uvicorn, the default server of MLflow")
        uris = {text: parse_model_uri(text) for text in request.args.getlist("uri")}
        if not 0 < len(uris) <= MAX_URIS or not all(uri.followed for uri in uris.values()):
            raise InvalidConfig(f"the change feed needs 1 to {MAX_URIS:,} URIs of stages, aliases or tags")
        models = {text: uri.name for text, uri in uris.items()}
        if hidden := [model for model in models.values() if not access.may_read(model)]:
            raise ScopeMissing(f"you may not read the model {hidden[0]}")
        subscription, token = _Subscription(models, store, active_workspace(), copy_context()), secrets.token_hex()
        with self._lock:
            oldest = time.monotonic() - _UNOPENED_SECONDS
            self._unopened = {key: entry for key, entry in self._unopened.items() if entry.created_at > oldest}
            if len(self._unopened) + len(self._open) >= _MAX_STREAMS:
                raise TooManyRequests(f"this worker has {_MAX_STREAMS:,} open streams")
            self._unopened[token] = subscription
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="onnxserve-changes", daemon=True)
                self._thread.start()
        response = jsonify()
        response.headers[_TOKEN] = token
        return response

    def _enclose(self, app: _AsgiApp, path: str) -> _AsgiApp:
        """Return `app`, except that the answers of `subscribe` at `path` are replaced with streams."""

        async def enclosing(scope: _Message, receive: _Receive, send: _Send) -> None:
            subscription: _Subscription | None = None

            async def send_unless_subscribed(message: _Message) -> None:
                nonlocal subscription
                if token := dict(message.get("headers", ())).get(_TOKEN.encode()):
                    with self._lock:
                        subscription = self._unopened.pop(token.decode())
                        self._open.add(subscription)
                if subscription is None:
                    await send(message)

            is_feed = scope["type"] == "http" and scope["path"] == path
            await app(scope, receive, send_unless_subscribed if is_feed else send)
            if subscription is not None:
                await self._stream(subscription, receive, send)

        return enclosing

    async def _stream(self, subscription: _Subscription, receive: _Receive, send: _Send) -> None:
        """Send the events of a subscription until the client disconnects, the server stops, or the time is over."""
        arrived, gone = asyncio.Event(), asyncio.ensure_future(_disconnect(receive))
        subscription.wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
        last_sent = time.monotonic()
        try:
            async with asyncio.timeout(_STREAM_SECONDS * random.uniform(0.8, 1.2)):
                await send(_START)
                while not (gone.done() or _is_stopping() or subscription.is_stale):
                    arrived.clear()
                    with self._lock:
                        unsent, subscription.unsent = subscription.unsent, {}
                    if unsent or time.monotonic() - last_sent > HEARTBEAT_SECONDS:
                        await send({"type": "http.response.body", "body": event_bytes(unsent), "more_body": True})
                        last_sent = time.monotonic()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(arrived.wait(), _WAKE_SECONDS)
        except TimeoutError:
            pass
        finally:
            gone.cancel()
            with self._lock:
                self._open.discard(subscription)
        await send({"type": "http.response.body", "body": b""})

    def _watch(self) -> None:
        watched: defaultdict[str, _Watched] = defaultdict(_Watched)
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                subscriptions = [*self._unopened.values(), *self._open]
            for workspace in {subscription.workspace for subscription in subscriptions}:
                members = [subscription for subscription in subscriptions if subscription.workspace == workspace]
                try:
                    members[0].context.run(self._update, watched[workspace], members)
                except Exception:  # noqa: BLE001 - The thread must survive every error of the two databases.
                    _log.exception("the change feed cannot read the changes of the registry")

    def _update(self, watched: _Watched, subscriptions: Sequence[_Subscription]) -> None:
        """Resolve the URIs that may have changed, and pass new results to the subscriptions."""
        is_due = time.monotonic() - watched.resolved_at > _RESOLVE_SECONDS
        counts: dict[str, int] = {}
        try:
            counts = RegistryChanges(subscriptions[0].store).recent()
        except OnnxserveError as error:
            if is_due:
                _log.warning("the change feed reads the registry every %g s: %s", _RESOLVE_SECONDS, error.message)
        changed = {model for model, count in counts.items() if watched.counts.get(model) != count}
        watched.counts |= counts
        if not (is_due or changed or any(subscription.is_new for subscription in subscriptions)):
            return
        if is_due:
            watched.resolved_at = time.monotonic()
        uris = {
            uri
            for subscription in subscriptions
            for uri, model in subscription.models.items()
            if is_due or subscription.is_new or model in changed
        }
        results = _resolve(uris)
        for subscription in subscriptions:
            subscription.is_new = False
            if is_due and results.keys() >= subscription.models.keys():
                subscription.resolved_at = watched.resolved_at
            shared, known = subscription.models.keys() & results.keys(), subscription.known
            news = {uri: results[uri] for uri in shared if uri not in known or known[uri] != results[uri]}
            if news:
                known |= news
                with self._lock:
                    subscription.unsent |= news
                subscription.wake()


def _resolve(uris: Iterable[str]) -> dict[str, ResolvedModel | None]:
    """Resolve URIs in this process. An agent finds the reason for None itself. URIs without an answer are omitted."""
    results: dict[str, ResolvedModel | None] = {}
    with registry_client_is(registry()):
        for uri, result in BatchResolver().resolve(uris).items():
            if isinstance(result, ResolvedModel):
                results[uri] = result
            elif isinstance(result, NotFound | InvalidConfig):
                results[uri] = None
    return results


async def _disconnect(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _is_stopping() -> bool:
    """Return True if uvicorn stops, which waits for open streams. Its `Server` handles SIGTERM in each worker."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))
