"""Strangers: clients without a valid key that attack a port from a process of their
own, and the latency of a caller beside them.

`python -m tests.support.strangers ARGUMENTS` is that process; ARGUMENTS are JSON.
"""

import asyncio
import gzip
import json
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SIZES = {
    "no key": 100,
    "wrong key": 100,
    "gzip": 16_000_000,
    "unfinished body": 1_000_000,
    "dripping head": 100_000,
    "silent": 0,
}
"""The bytes of a body (decompressed), or of a head before it drips, by way."""
WAYS = list(SIZES)
_DRIP_SECONDS = 0.005
_PAUSE_SECONDS = 0.02


@contextmanager
def strangers(
    address, way, target="POST /invocations", number=40, seconds=60, size=None, is_tls=False
):
    """Yield a list when all strangers have connected once. A stranger sends its next
    request after a response, on a new connection. At the end, or after `seconds`, all
    sockets are closed, and the list has the number of responses by their status line.
    """
    sent = [way, SIZES[way] if size is None else size, target]
    arguments = json.dumps([*address, number, seconds, is_tls, sent])
    command = [sys.executable, "-m", "tests.support.strangers", arguments]
    root = Path(__file__).parents[2]
    counted = []
    with subprocess.Popen(
        command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            process.stdout.readline()
            yield counted
        finally:
            report, _ = process.communicate()
            counted.append(json.loads(report))


def p99(ask, count=200):
    """Return the 99th percentile of the seconds that `ask` takes."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[int(0.99 * count)]


def p99_beside(ask, address, way, count=200, **more):
    """Return `p99` of a caller without strangers and beside them; `more` is as in
    `strangers`.
    """
    alone = p99(ask, count)
    with strangers(address, way, **more):
        return alone, p99(ask, count)


def _request(way, size, target):
    head = f"{target} HTTP/1.1\r\nHost: localhost\r\n"
    if way == "silent":
        return b""
    if way == "dripping head":
        line = b"X-Drip: " + b"a" * 8000 + b"\r\n"
        return head.encode() + line * (size // len(line)) + b"X-Drip: "
    length = size
    body = bytes(size)
    if way == "gzip":
        body = gzip.compress(body)
        length = len(body)
        head += "Content-Encoding: gzip\r\n"
    if way == "wrong key":
        head += "Authorization: Bearer wrong\r\n"
    if way == "unfinished body":
        length += 1
    head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def _report(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _attack(host, port, number, seconds, is_tls, sent):
    request = _request(*sent)
    does_drip = sent[0] == "dripping head"
    tls = ssl._create_unverified_context() if is_tls else None
    have_begun = asyncio.Event()
    begun = set()
    counted = {}

    async def attack(stranger):
        while True:
            status = "closed"
            try:
                # A silent stranger does not even begin the handshake of TLS.
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=tls if request else None
                )
                try:
                    begin(stranger)
                    writer.write(request)
                    answer = asyncio.ensure_future(reader.read(12))
                    while does_drip and not answer.done():
                        writer.write(b"a")
                        await asyncio.sleep(_DRIP_SECONDS)
                    status = (await answer).decode("latin-1")[9:] or status
                finally:
                    writer.transport.abort()
            except OSError:
                begin(stranger)
            counted[status] = counted.get(status, 0) + 1
            await asyncio.sleep(_PAUSE_SECONDS)

    def begin(stranger):
        begun.add(stranger)
        if len(begun) == number:
            have_begun.set()

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            attackers = [tasks.create_task(attack(stranger)) for stranger in range(number)]
            await have_begun.wait()
            _report("")
            await asyncio.to_thread(sys.stdin.read)
            for attacker in attackers:
                attacker.cancel()
    _report(json.dumps(counted))


if __name__ == "__main__":
    asyncio.run(_attack(*json.loads(sys.argv[1])))
