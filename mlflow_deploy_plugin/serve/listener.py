"""A listening socket that servers share, so that a new server can replace a server
without refusing connections.

`onnxserve hold-socket SOCKET PORT` runs the holder of the socket. The holder sends the
socket to each server that connects to the Unix socket SOCKET (SCM_RIGHTS, unix(7)),
even from another container.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.core.errors import DeploymentFailed

_BACKLOG = 2048
_WAIT_SECONDS = 30.0
_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class SharedListener:
    listener: socket.socket
    holder: socket.socket

    @property
    def is_gone(self) -> bool:
        """True if the holder has exited, so that clients can no longer reach the
        socket.
        """
        return bool(_ended([self.holder]))


@contextmanager
def shared_listener(path: Path | None) -> Iterator[SharedListener | None]:
    """Yield the listening socket of the holder at `path`, a process that may start
    later; None without a path.

    Raises DeploymentFailed if there is no holder.
    """
    if path is None:
        yield None
        return
    give_up_at = time.monotonic() + _WAIT_SECONDS
    with socket.socket(socket.AF_UNIX) as holder:
        while True:
            try:
                holder.connect(str(path))
                _, descriptors, _, _ = socket.recv_fds(holder, 1, 1)
                break
            except OSError as error:
                if time.monotonic() >= give_up_at:
                    raise DeploymentFailed(
                        f"there is no listening socket at {path}: {error.strerror}",
                    ) from None
                time.sleep(_RETRY_SECONDS)
        if not descriptors:
            raise DeploymentFailed(
                f"the process that listens at {path} did not send a listening socket",
            )
        with socket.socket(fileno=descriptors[0]) as listener:
            yield SharedListener(listener, holder)


def _ended(connections: list[socket.socket]) -> list[socket.socket]:
    """Return the connections whose other side has closed them, or has sent bytes."""
    poll = select.poll()  # select(2) does not support descriptors above 1,023.
    for connection in connections:
        poll.register(connection, select.POLLIN)
    ended = {descriptor for descriptor, _ in poll.poll(0)}
    return [connection for connection in connections if connection.fileno() in ended]


def hold(path: Path, port: int) -> None:
    """Listen on `port` of all addresses, and send the socket to servers that connect to
    `path`, until SIGTERM.
    """
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    path.unlink(missing_ok=True)
    with (
        socket.create_server(("", port), backlog=_BACKLOG) as listener,
        socket.socket(socket.AF_UNIX) as door,
    ):
        door.bind(str(path))
        os.chmod(path, 0o600)
        door.listen()
        servers: list[socket.socket] = []
        while True:
            server, _ = door.accept()
            with suppress(OSError):  # The server has already exited.
                socket.send_fds(server, [b"1"], [listener.fileno()])
            ended = _ended(servers)
            servers = [connection for connection in servers if connection not in ended] + [server]


def main(arguments: Sequence[str]) -> int:
    """Run `onnxserve hold-socket SOCKET PORT` until SIGTERM."""
    path, port = arguments
    hold(Path(path), int(port))
    return 0
