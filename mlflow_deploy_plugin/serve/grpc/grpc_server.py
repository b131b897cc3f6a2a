"""The gRPC server of a worker. The server starts after the fork, and stops together
with the HTTP server.
"""

import threading
from pathlib import Path

import grpc

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.certificates import follow_files, open_tls
from mlflow_deploy_plugin.serve.grpc.service import OpenCalls, handlers
from mlflow_deploy_plugin.serve.inference.limits import RequestThreads, request_threads
from mlflow_deploy_plugin.serve.inference.server import Server

_MAX_STREAMS = 32
"""The maximum number of streams per worker, and separately of public streams; each
stream has its own thread.
"""

_MAX_WAITING = 128
"""The maximum number of calls that wait for a thread; gRPC rejects further calls with
RESOURCE_EXHAUSTED.
"""

_CHECK_SECONDS = 0.1
_QUIET_SECONDS = 1.0
"""The seconds without a call after which a drained server stops; by then every accepted
call has a thread.
"""

_FRAMING_BYTES = 64 * 1024
"""The size limit for the names, shapes and parameters of a message, in addition to
`max_body_bytes` for tensors.
"""

_IDLE_MILLISECONDS = 10_000
"""The limit of a connection without a call, on a server that needs keys: a stranger's
connection cannot be distinguished from a caller's.
"""

_OPTIONS = {
    "grpc.so_reuseport": 1,
    # gRPC's own limit of the handshake is 120 s.
    "grpc.server_handshake_timeout_ms": 5_000,
    "grpc.max_send_message_length": -1,
    # Detect clients that disappeared silently, and accept clients that ping every 10 s.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
}


class GrpcServer:
    """A gRPC server on `grpc_port`. Raises InvalidConfig if the port or the certificate
    cannot be used.

    Args:
        max_connections: the limit of connections; further connections are closed.
    """

    def __init__(self, server: Server, max_connections: int) -> None:
        spec = server.spec
        # gunicorn kills the worker after the full timeout.
        self._grace = max(
            0.5,
            spec.graceful_timeout_seconds - 1.0,
        )
        self._calls = OpenCalls(_MAX_STREAMS, spec.request_timeout_seconds)
        threads = request_threads(spec) + 2 * _MAX_STREAMS
        most_calls = threads + _MAX_WAITING
        options = {
            **_OPTIONS,
            "grpc.max_receive_message_length": spec.max_body_bytes + _FRAMING_BYTES,
            # Otherwise a client that resets many calls cancels other calls.
            "grpc.max_concurrent_streams": most_calls,
            "grpc.max_allowed_incoming_connections": max_connections,
        }
        if server.auth.is_required:
            options["grpc.max_connection_idle_ms"] = _IDLE_MILLISECONDS
        self._grpc = grpc.server(
            RequestThreads(threads),
            handlers=handlers(server, self._calls),
            options=list(options.items()),
            maximum_concurrent_rpcs=most_calls,
        )
        host = f"[{spec.host}]" if ":" in spec.host else spec.host
        host = host or "[::]"
        address = f"{host}:{spec.grpc_port}"
        try:
            if spec.certfile is not None and spec.keyfile is not None:
                read = follow_files(_read_certificates, spec.certfile, spec.keyfile, spec.ca_certs)
                credentials = grpc.dynamic_ssl_server_credentials(
                    read(),
                    read,
                    spec.ca_certs is not None,
                )
                self._grpc.add_secure_port(address, credentials)
            else:
                self._grpc.add_insecure_port(address)
        except (OSError, RuntimeError) as error:
            raise InvalidConfig(f"gRPC cannot listen on {address}: {error}") from None
        self._grpc.start()
        self._ended: threading.Event | None = None

    def drain(self) -> None:
        """Reject new calls and finish current calls within `graceful_timeout_seconds`;
        return immediately.
        """
        self._calls.drain()
        self._ended = self._grpc.stop(self._grace)

    def wait(self) -> None:
        """Wait until all calls are finished. Drain first if needed, because gunicorn's
        threaded worker does not drain.

        gRPC itself would wait up to 20 s longer, until each client has acknowledged the
        end of its connection.
        """
        if self._ended is None:
            self.drain()
        quiet_seconds = 0.0
        while self._ended is not None and not self._ended.wait(_CHECK_SECONDS):
            quiet_seconds = 0.0 if self._calls.open else quiet_seconds + _CHECK_SECONDS
            if quiet_seconds >= _QUIET_SECONDS:
                self._grpc.stop(None)
                self._ended.wait()


def _read_certificates(
    certfile: str,
    keyfile: str,
    ca_certs: str | None,
) -> grpc.ServerCertificateConfiguration:
    """Check the TLS files, because gRPC would silently ignore invalid new files, and
    return them in gRPC's form.
    """
    open_tls(certfile, keyfile, ca_certs)
    authorities = Path(ca_certs).read_bytes() if ca_certs is not None else None
    return grpc.ssl_server_certificate_configuration(
        [(Path(keyfile).read_bytes(), Path(certfile).read_bytes())],
        authorities,
    )
