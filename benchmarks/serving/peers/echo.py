"""A server without a model: uvloop and httptools send a fixed body after each complete
request. `echo.py PORT BODY_BYTES`.
"""

import asyncio
import sys

import httptools
import uvloop

SIZE = int(sys.argv[2])
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % SIZE
    + b'{"predictions":['.ljust(SIZE - 2, b"0")
    + b"]}"
)


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.url = url

    def on_header(self, name, value):
        pass

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.body = b""
        self.transport.write(ANSWER)


async def main():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


uvloop.run(main())
