"""The limits of HTTP requests and connections, as documented in
`docs/server-settings.md`.
"""

from dataclasses import dataclass, replace

REQUEST_LINE_BYTES = 8190
FIELD_BYTES = 8190
FIELDS = 100
HEAD_BYTES = 64 * 1024
"""The limit in bytes of all header fields together; each field also has its own limit.
"""
CHUNK_LINE_BYTES = 1024
KEEP_ALIVE_SECONDS = 75
"""The limit of an idle connection: longer than load balancers' 60 s, because a load
balancer must close it first.
"""
MAX_CONNECTIONS = 1000
SLOWEST_BYTES_PER_SECOND = 1024
"""The speed below which a request counts as idle if other clients need its connection.
"""
MAX_UNSENT_BYTES = 256 * 1024 * 1024
"""The limit of unsent response bytes per worker; above this limit, the response that
has waited longest is aborted.
"""
STRANGER_SECONDS = 10.0
"""The limit of each wait for a client that has not sent a valid key."""
HANDSHAKE_SECONDS = 5.0
HANDSHAKES = 128
"""The limits of the time and the number of TLS handshakes; an additional handshake
replaces the oldest.
"""
LINGER_SECONDS = 5.0
"""The limit for discarding the bytes that a client still sends before its connection is
closed.
"""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """gunicorn's settings for the connections of one worker.

    Attributes:
        request_seconds: `--timeout`: the limit for receiving a request, and for a
            client to read a part of a response.
        keep_alive_seconds: `--keep-alive`: the limit for an idle connection.
        connections: `--worker-connections`: an additional connection replaces an idle
            connection, or is refused.
        body_bytes: the limit of all incomplete or unanswered bodies together.
        linger_bytes: the limit of the bytes that are discarded before the end.
    """

    request_seconds: float
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    connections: int = MAX_CONNECTIONS
    body_bytes: int = 256 * 1024 * 1024
    linger_bytes: int = 64 * 1024 * 1024

    def of_strangers(self) -> "ConnectionLimits":
        """Return the limits for a client that has not sent a valid key."""
        return replace(
            self,
            request_seconds=min(self.request_seconds, STRANGER_SECONDS),
            keep_alive_seconds=STRANGER_SECONDS,
            linger_bytes=2 * 1024 * 1024,
        )
