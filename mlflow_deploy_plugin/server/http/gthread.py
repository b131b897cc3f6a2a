"""gunicorn's threaded worker, with what it lacks: an end without delay, and patience that ends.

gunicorn 26.2's own waits for the whole graceful timeout as soon as one client keeps an idle connection open (tried:
30 s instead of 0.3 s), since it sleeps on its selector until then; and meanwhile new clients are neither answered nor
refused, since nobody accepts from the listener that it keeps.

And it waits for ever for the rest of a request that a client has begun, and for a client to take its answer: as many
silent clients as there are threads, and nobody is served any more; here a request has to be whole after `timeout`
seconds, however its bytes trickle in (of one that is streamed each piece), and a client has to take something of its
answer in as many. And it closes connections in its main thread, where it waits up to 2 s for each client to do the
same; here nothing waits.

And a request that came together with the one before it waits there until the client sends something more: it lies in
the parser's buffer, and the selector hears nothing of it.
"""

import contextlib
import errno
import math
import socket
import struct
import time
from functools import partial
from types import FrameType
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

_LEFT_BYTES = 65536


class GracefulThreadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Ends as soon as the requests in flight are answered; does not wait for ever for a slow client.

    Attributes:
        grpc: the worker's gRPC listener, where there is one (`http/gunicorn_conf.py`).
    """

    grpc: Any = None

    @property
    def server(self) -> Any:
        """The `Server` that the application of this worker answers from."""
        from mlflow_deploy_plugin.server.http.app import SERVER  # gunicorn imports this module before it forks

        return self.wsgi.extensions[SERVER]

    def init_process(self) -> None:
        """Accepted connections inherit the listener's send timeout (Linux); gunicorn leaves it as it is."""
        self._begun: dict[Any, float] = {}
        for listener in self.sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", self.cfg.timeout, 0))
        super().init_process()

    def handle(self, conn: Any) -> Any:
        """As gunicorn's; runs in a thread of the pool, from the first byte of a request to the last of its answer."""
        self._begun[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self._begun[conn]

    def handle_request(self, req: Any, conn: Any) -> Any:
        """As gunicorn's; the application may give up a body (`http/app.py`), and with it the connection: nobody knows
        where the next request begins. And of a streamed one it says when the client is awaited."""
        req.body.give_up = req.force_close
        req.body.awaits_client = partial(self._awaits_client, conn)
        try:
            return super().handle_request(req, conn)
        except BlockingIOError:  # SO_SNDTIMEO (`init_process`); gunicorn would log it as an error of the server
            raise BrokenPipeError(errno.EPIPE, "the client takes nothing of its answer") from None

    def _awaits_client(self, conn: Any, is_awaited: bool) -> None:
        self._begun[conn] = time.monotonic() if is_awaited else math.inf

    def finish_request(self, conn: Any, fs: Any) -> None:
        """As gunicorn's, but what has come already of the next request is read at once."""
        goes_on = not fs.cancelled() and fs.exception() is None and fs.result() is True
        if goes_on and _holds_bytes(conn):
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Runs once a second in the main thread. A request that has come whole does not notice the end of listening."""
        super().murder_pending()
        late = time.monotonic() - self.cfg.timeout
        for connection in [connection for connection, begun in self._begun.copy().items() if begun < late]:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RD)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """As gunicorn's, with an answer in our form instead of a page of HTML; `exc` is what its parser found."""
        from mlflow_deploy_plugin.server.http import unparsed  # gunicorn imports this module before it forks

        with contextlib.suppress(OSError):
            client.sendall(unparsed.answer_to(exc))

    def accept(self, listener: socket.socket) -> None:
        """As gunicorn's, which may be told of a client in the same moment in which it has closed the listener."""
        if listener.fileno() >= 0:
            super().accept(listener)

    def enqueue_req(self, conn: Any) -> None:
        """As gunicorn's, for a connection that closes without waiting."""
        conn.close = partial(_close, conn.sock)
        super().enqueue_req(conn)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: new clients are refused, requests in flight are finished, idle connections are closed at once."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(self._let_go)

    def _let_go(self) -> None:
        """Runs in the main thread; an idle connection is one whose time is up.

        Clients that the kernel has connected already, and that nobody has accepted yet, would be reset by the close.
        """
        if self.grpc is not None:
            self.grpc.drain()
        self.set_accept_enabled(False)
        for listener in self.sockets:
            connected = -1
            while connected < self.nr_conns < self.worker_connections:
                connected = self.nr_conns
                super().accept(listener)
            listener.close()
        for connection in (*self.keepalived_conns, *self.pending_conns):
            connection.timeout = 0.0
        self.murder_keepalived()
        self.murder_pending()


def _holds_bytes(conn: Any) -> bool:
    """Whether bytes of the connection lie in the parser's buffer, or in that of TLS."""
    pending = getattr(conn.sock, "pending", None)
    return bool(conn.parser.unreader.buf.getbuffer().nbytes or (pending and pending()))


def _close(connection: socket.socket, graceful: bool = False) -> None:
    """Sends what is left to send and closes; reads what has come already, since unread bytes would reset the answer."""
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.shutdown(socket.SHUT_WR)
        left = _LEFT_BYTES
        while left > 0 and (piece := connection.recv(4096)):
            left -= len(piece)
    connection.close()
