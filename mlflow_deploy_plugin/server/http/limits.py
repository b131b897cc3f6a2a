"""The limits of HTTP requests and connections: the figures of `docs/http.md`, each specified once."""

from dataclasses import dataclass

REQUEST_LINE_BYTES, FIELD_BYTES, FIELDS = 8190, 8190, 100
HEAD_BYTES = 128 * 1024
"""The limit of all header fields together; each field has its own limit."""
CHUNK_LINE_BYTES = 1024
KEEP_ALIVE_SECONDS = 75
"""Load balancers close an idle connection after 60 s, and must do so before the server does."""
MAX_CONNECTIONS = 1000
SLOWEST_BYTES_PER_SECOND = 1024
"""A slower request counts as idle if other clients want its place."""
MAX_UNSENT_BYTES = 256 * 1024 * 1024
"""The limit of unsent response bytes per worker; above it, the response that waits longest is broken off."""
LINGER_SECONDS, LINGER_BYTES = 5.0, 64 * 1024 * 1024
"""The seconds and bytes for which a client that is still sending is read before its connection is closed."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """gunicorn's settings for the connections of one worker.

    Attributes:
        request_seconds: `--timeout`: for a request to arrive, and for a client to take a part of its response.
        keep_alive_seconds: `--keep-alive`: for a connection to be idle.
        connections: `--worker-connections`: one more replaces an idle connection, or is refused.
        body_bytes: the limit of all incomplete or unanswered bodies together.
    """

    request_seconds: float
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    connections: int = MAX_CONNECTIONS
    body_bytes: int = 256 * 1024 * 1024
