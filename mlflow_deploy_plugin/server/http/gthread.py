"""gunicorn's threaded worker, which lets go of its listener and of idle connections when it is told to end.

gunicorn 26.2's own waits for the whole graceful timeout as soon as one client keeps an idle connection open (tried:
30 s instead of 0.3 s), since it sleeps on its selector until then; and meanwhile new clients are neither answered nor
refused, since nobody accepts from the listener that it keeps.
"""

from types import FrameType

from gunicorn.workers.gthread import ThreadWorker


class GracefulThreadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Ends as soon as the requests in flight are answered."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: new clients are refused, requests in flight are finished, idle connections are closed at once."""
        super().handle_exit(sig, frame)
        self.method_queue.defer(self._let_go)

    def _let_go(self) -> None:
        """Runs in the main thread; an idle connection is one whose time is up."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        for connection in (*self.keepalived_conns, *self.pending_conns):
            connection.timeout = 0.0
        self.murder_keepalived()
        self.murder_pending()
