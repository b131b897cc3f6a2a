"""A faulty Kubernetes API server: a proxy that answers 409, 429 and 500, and cuts connections."""

import json
import re
import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

Fault = str
_ANSWERS = {
    "409": (409, {}, {"message": "the object has been modified; please apply your changes to the latest version"}),
    "429": (429, {"Retry-After": "1"}, {"message": "too many requests"}),
    "500": (500, {}, {"message": "etcdserver: leader changed"}),
}


@dataclass
class FaultyApi:
    """A proxy to an API server.

    Attributes:
        faults: the faults that each new request (method and path) meets in turn before it is forwarded: 409 (only for
            PATCH), 429, 500 or `cut`.
        cut_after: the number of bytes, including the head, after which the first stream of log lines is cut.
        met: the count of each fault.
    """

    server: str
    certificate: str
    faults: Sequence[Fault] = ("409", "429", "500", "cut")
    cut_after: int = 300
    met: Counter[Fault] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def fault(self, method: str, path: str) -> Fault | None:
        key = f"{method} {path}"
        self.asked[key] += 1
        # Each path begins with a different fault, so that not every path needs all faults.
        index = (len(self.asked) + self.asked[key]) % len(self.faults) if self.asked[key] <= 2 else None
        found = None if index is None else self.faults[index]
        if found is None or (found == "409" and method != "PATCH"):
            return None
        self.met[found] += 1
        return found


class _Handler(socketserver.StreamRequestHandler):
    proxy: FaultyApi

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (line := self.rfile.readline()):
            head += line
        if not head:
            return
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        body = self.rfile.read(int(length[1])) if length else b""
        is_upgrade = b"upgrade: websocket" in head.lower()
        fault = None if is_upgrade else self.proxy.fault(method, path)
        if fault == "cut":
            return
        if fault is not None:
            self._answer(*_ANSWERS[fault])
            return
        if not is_upgrade:
            head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", head)[:-2] + b"Connection: close\r\n\r\n"
        parts = urlsplit(self.proxy.server)
        context = ssl.create_default_context(cafile=self.proxy.certificate)
        with (
            socket.create_connection((parts.hostname, parts.port)) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as upstream,
        ):
            upstream.sendall(head + body)
            sending = threading.Thread(target=self._send_on, args=(upstream,), daemon=True)
            sending.start()
            left = self.proxy.cut_after if "follow=true" in path and not self.proxy.met["stream"] else None
            with suppress(OSError):
                while data := upstream.recv(65536):
                    self.connection.sendall(data if left is None else data[:left])
                    left = None if left is None else left - len(data)
                    if left is not None and left <= 0:
                        self.proxy.met["stream"] += 1
                        break
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            sending.join()

    def _send_on(self, upstream: ssl.SSLSocket) -> None:
        with suppress(OSError):
            while data := self.connection.recv(65536):
                upstream.sendall(data)
        with suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, headers: dict[str, str], document: dict[str, str]) -> None:
        body = json.dumps({"kind": "Status", "code": status, **document}).encode()
        lines = [f"HTTP/1.1 {status} Fault", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)


@contextmanager
def faulty_api(kubeconfig: Path, folder: Path) -> Iterator[tuple[FaultyApi, Path]]:
    """Yield a proxy to the cluster of a kubeconfig, and a kubeconfig for the proxy."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    proxy = FaultyApi(cluster["server"], cluster["certificate-authority"])
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
        file = folder / "faulty.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        yield proxy, file
        server.shutdown()
