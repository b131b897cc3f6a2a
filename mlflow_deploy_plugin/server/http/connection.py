"""A connection of the accelerated worker: its state, its deadlines, and its end, whatever is read from it.

Every wait has an end: for the first byte and between requests (keep-alive), for a whole request, and for a client that
takes nothing of its answer. Deadlines are looked at a few times a second (`sweep`), which costs a request nothing.
Where there is no room for another connection, the one that has been silent the longest goes: a thousand clients that
say nothing, or as good as nothing, keep nobody out.
"""

import asyncio
import heapq
import math
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, NotReady, OnnxserveError, RequestTimeout
from mlflow_deploy_plugin.server.http.body import SLOWEST_BYTES_PER_SECOND, Body
from mlflow_deploy_plugin.server.http.exchange import Exchange
from mlflow_deploy_plugin.server.http.front import Front
from mlflow_deploy_plugin.server.http.head import EMPTY_LINE, Head
from mlflow_deploy_plugin.server.http.messages import refused
from mlflow_deploy_plugin.server.http.reply import reply

_UNDERWAY_SECONDS = 1.0
"""After an answer, or after connecting, the next request may be on its way for so long."""
_LINGER_SECONDS = 5.0
_LOOKED_FOR = 16
_STALE_SECONDS = 0.5
"""`Front.now` may be so old where the loop is busy: whoever has asked has done so later than it says."""


class Connection(asyncio.Protocol):
    """One connection. uvicorn makes it, and calls `shutdown` when the worker ends."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self._front: Front = config.app
        self._limits = self._front.limits
        self._connections: set[Connection] = server_state.connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._client = ""
        self._buffer = b""
        self._head: Head | None = None
        self._body: Body | None = None
        self._exchange: Exchange | None = None
        self._deadline = math.inf
        self._unsent = 0
        self._held = 0
        self._lingered = 0
        self._is_fresh = True  # nothing has ever come
        self._is_resting = True  # nothing is in hand: no part of a request has come, no answer is on its way
        self._has_begun = False  # a part of a request has come
        self._is_busy = False  # a request is being answered, or a step is about to be taken
        self._is_blocked = False  # the client does not take what is sent
        self._is_paused = False  # nothing is read
        self._is_ending = False  # after this answer the connection ends
        self._is_lingering = False  # the last answer is sent; what still comes is thrown away
        self._has_eof = False  # the client sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own class
        self._transport.set_write_buffer_limits(high=1, low=0)  # told of all that a client leaves; 0 would block TLS
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        self._connections.add(self)
        self._deadline = self._loop.time() + self._limits.request_seconds
        if len(self._connections) > self._limits.connections and not self._make_room():
            self._refuse(NotReady("this worker has as many connections as it may; ask again in a moment", 1))

    def _make_room(self) -> bool:
        """Ends the connection that has been silent the longest; False: each of them is being answered.

        All are looked at for several who come: who has done nothing since then is still among the first to go.
        """
        silent = self._front.silent
        while silent:
            since, other = silent.pop()
            if other.silent_since == since:
                other.give_way()
                return True
        found = ((other.silent_since, number, other) for number, other in enumerate(self._connections))
        longest = heapq.nsmallest(_LOOKED_FOR, (one for one in found if one[0] < math.inf and one[2] is not self))
        if not longest:
            return False
        silent.extend((since, other) for since, _, other in reversed(longest[1:]))
        longest[0][2].give_way()
        return True

    @property
    def silent_since(self) -> float:
        """When the client has last done what is its turn, in the loop's time; infinite: it is not its turn."""
        waits = self._exchange is not None and self._exchange.awaits_client
        limits = self._limits
        if self._transport.is_closing() or (self._is_busy and not (waits or self._is_blocked)):
            return math.inf
        if self._is_lingering:
            patience = _LINGER_SECONDS
        elif self._is_fresh or self._is_blocked or self._has_begun or waits:
            patience = float(limits.request_seconds)
        else:
            patience = float(limits.keep_alive_seconds)
        since = self._deadline - patience
        if not self._is_fresh:
            come = len(self._buffer) + (self._body.received if self._body is not None else 0)
            since += _STALE_SECONDS + come / SLOWEST_BYTES_PER_SECOND
        return min(since, self._loop.time())

    def give_way(self) -> None:
        """Ends, without waiting for anybody, for the sake of a new connection."""
        if self._has_begun and not (self._is_blocked or self._is_lingering or self._exchange is not None):
            late = RequestTimeout("the request came too slowly, and other clients wait for its place")
            self._transport.write(reply(refused(self._head.path if self._head else "", late), keeps_alive=False))
            self._transport.close()
            self._deadline = self._front.now + _LINGER_SECONDS
        elif self._is_blocked or self._is_lingering or self._exchange is not None:
            self._transport.abort()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._exchange is not None:
            self._exchange.make_room(is_gone=True)
        if not self._is_busy:
            self._hold(0)
        self._buffer, self._head, self._body = b"", None, None

    def eof_received(self) -> bool:
        """What the client has sent whole is still answered (but over TLS, whose connections end both ways at once)."""
        self._has_eof = True
        if self._is_lingering:
            return False
        if self._body is not None:
            self._refuse(InvalidRequest(self._body.missing()))
        return self._is_busy or self._is_blocked or self._is_lingering

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._is_resting = False
        self._unsent = self._transport.get_write_buffer_size()
        self._deadline = self._front.now + self._limits.request_seconds

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._exchange is not None:
            self._deadline = math.inf if self._exchange.is_whole else self._front.now + self._limits.request_seconds
            self._exchange.make_room()
        if not self._is_busy and not self._is_lingering:
            self._wait_for_next()

    def shutdown(self) -> None:
        """The worker ends. What has begun, or is likely to be on its way, is answered; an idle connection is closed."""
        self._is_ending = True
        self._is_resting = False
        if not (self._has_begun or self._is_busy or self._is_blocked or self._is_lingering):
            now = self._front.now
            used = now if self._is_fresh else self._deadline - self._limits.keep_alive_seconds
            self._deadline = max(now, min(used, now) + _UNDERWAY_SECONDS)

    def sweep(self, now: float) -> None:
        """Ends a wait that has taken too long."""
        if now < self._deadline:
            return
        if unsent := self._transport.get_write_buffer_size():
            if unsent >= self._unsent:
                self._transport.abort()
            self._unsent = unsent
            self._deadline = now + self._limits.request_seconds
        elif self._is_lingering or self._transport.is_closing():
            self._transport.abort()
        elif self._exchange is not None and not self._exchange.awaits_client:
            self._deadline = now + self._limits.request_seconds  # it is the model that takes its time
        elif self._body is not None:
            self._refuse(RequestTimeout(self._body.missing()))
        elif self._has_begun:
            self._refuse(RequestTimeout("the head of the request did not arrive in time"))
        else:
            self._transport.close()

    def _send_last(self, last: bytes, keeps_alive: bool, reads_on: bool = False) -> None:
        """Sends the end of an answer, and goes on with the next request or ends; see `_end`."""
        self._is_busy = False
        if self._held:
            self._hold(0)
        if self._transport.is_closing():
            return
        self._head = self._body = None
        self._write(last)
        if keeps_alive:
            self._wait_for_next()
        else:
            self._end(reads_on)

    def _write(self, data: bytes) -> None:
        """Sends a part of an answer; the client may not have taken all of the parts before."""
        if self._is_blocked:
            self._unsent += len(data)  # so that what the client has taken shows in what is left
        self._transport.write(data)

    def _wait_for_answer(self) -> None:
        """Nothing more of the request is to come: the model has all the time, and the client to take what there is."""
        self._deadline = self._front.now + self._limits.request_seconds if self._is_blocked else math.inf

    def _wait_for_next(self) -> None:
        self._has_begun = False
        if self._is_blocked:
            return
        self._deadline = self._front.now + self._limits.keep_alive_seconds
        self._read_on()
        if self._buffer not in (b"", EMPTY_LINE):
            self._go_on_soon()
        elif self._has_eof or self._is_ending:
            self._transport.close()
        else:
            self._is_resting = not self._buffer

    def _read_on(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _hold(self, size: int) -> None:
        """Says how much of a body is held.

        Raises:
            NotReady: with those of other connections it is too much.
        """
        front = self._front
        front.held_bytes += size - self._held
        self._held = size
        if size and front.held_bytes > self._limits.body_bytes:
            raise NotReady("this worker receives as many large bodies as it may; ask again in a moment", 1)

    def _begin(self) -> None:
        """A part of a request has come: the time for all of it begins."""
        if not self._has_begun:
            self._has_begun = True
            self._deadline = self._front.now + self._limits.request_seconds

    def _refuse(self, error: OnnxserveError) -> None:
        """The last answer on this connection: where the next request would begin is not known."""
        if self._exchange is not None:  # which has its own answer to that
            self._exchange.fail(error)
            self._is_ending = True
            self._wait_for_answer()
            return
        head = self._head
        response = refused(head.path if head else "", error)
        self._transport.write(reply(response, keeps_alive=False, with_body=head is None or head.method != "HEAD"))
        self._end(reads_on=True)

    def _end(self, reads_on: bool = False) -> None:
        """Closes; where the client may still be sending only after it has stopped, since a reset would take the answer
        from it."""
        if not (reads_on or self._buffer or self._is_paused):
            self._transport.close()
            self._deadline = self._front.now + self._limits.request_seconds
            return
        self._is_lingering = True
        self._hold(0)
        self._buffer, self._head, self._body = b"", None, None
        self._deadline = self._front.now + _LINGER_SECONDS
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _go_on_soon(self) -> None:
        """The next step, after other connections had their turn."""
        raise NotImplementedError
