"""The load client with servers whose speed and errors are known."""

import subprocess
import sys
from contextlib import contextmanager

from benchmarks.serving.load import Target, closed_loop, post
from tests.support.waiting import free_port, wait_until

SLOW = """
import asyncio, sys
async def answer(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        await reader.readexactly(4)
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 %s x\\r\\nContent-Length: 2\\r\\n\\r\\nok" % sys.argv[2].encode())
async def main():
    async with await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def listening(*command):
    port = free_port()
    process = subprocess.Popen(
        [word.replace("PORT", str(port)) for word in command], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _is_open(port), what="the server")
        yield port
    finally:
        process.kill()
        process.wait()


def _is_open(port):
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def slow(status=200):
    return (sys.executable, "-c", SLOW, "PORT", str(status))


def test_closed_loop_follows_the_server():
    with listening(*slow()) as port:
        measured = closed_loop(Target(port, post("/", b"body"), b"ok"), connections=2, seconds=0.5)
    # two connections, 20 ms per response, and one more response per connection at the
    # edges
    assert measured.rate <= 104
    assert measured.p50 >= 0.02
    # Both connections always wait for a response (Little's law), independently of the
    # machine's speed.
    assert measured.rate * measured.p99 > 1.5
    assert measured.wrong == 0


def test_closed_loop_counts_wrong_responses():
    with listening(*slow(503)) as port:
        measured = closed_loop(Target(port, post("/", b"body"), b"ok"), connections=1, seconds=0.1)
    assert measured.requests == 0
    assert measured.wrong >= 5
