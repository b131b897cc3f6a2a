"""The content encodings gzip (RFC 1952) and zstd (RFC 8878), and deflate for requests
only.
"""

import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import zstandard

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.invocations import parse_accept

COMPRESSED_FROM_BYTES = 16 * 1024
"""The size from which a response is compressed. Smaller responses fit into the first
packets of a connection.
"""

_GZIP = zlib.MAX_WBITS + 16
_PIECE_BYTES = 16 * 1024
"""The number of bytes that zlib receives at once, because zlib copies the remaining
bytes after every member.
"""
_MOST_MEMBERS = 10_000
_ZSTD_WINDOW = 8 * 1024 * 1024
"""The window that RFC 9659 allows for the content encoding `zstd`."""
_LEVEL = 1
"""The level of both encodings: several times faster than the default level; responses
are a few per cent larger.
"""

_COMPRESSIBLE = (
    "application/json",
    "text/",
    "application/vnd.apache.arrow.",
    "application/x-ndjson",
)
"""The prefixes of the content types that are compressed."""


def decode_body(request: RawRequest, limit: int) -> RawRequest:
    """Return the request with its body decompressed. Raises BodyTooLarge above `limit`
    bytes.

    Raises UnsupportedMediaType for several or unknown encodings, and InvalidRequest for
    invalid or truncated data.
    """
    encoding = request.headers.get("content-encoding")
    if encoding is None or not request.body:
        return request
    name = encoding.strip().lower()
    if name in ("identity", ""):
        return request
    decompress = _DECODERS.get(name)
    if decompress is None:
        if "," in name:
            fault = "only one encoding is allowed"
        else:
            fault = "this encoding is not supported"
        raise UnsupportedMediaType(
            f"the Content-Encoding is {encoding[:60]!r}; {fault}: send gzip, deflate, zstd or "
            "identity",
        )
    return replace(request, body=decompress(request.body, limit))


def encode_body(request: RawRequest, response: RawResponse) -> RawResponse:
    """Return the response, compressed if it is large and Accept-Encoding allows it;
    zstd is preferred.

    A compressible response always has `Vary`, so that a cache sends it only to clients
    that accept its encoding.
    """
    if len(response.body) < COMPRESSED_FROM_BYTES or not response.content_type.startswith(
        _COMPRESSIBLE,
    ):
        return response
    headers = {**response.headers, "Vary": "Accept-Encoding"}
    accepted = parse_accept(request.headers.get("accept-encoding", ""))
    name = max(_ENCODERS, key=accepted.quality)
    quality = accepted.quality(name)
    if quality <= 0 or quality < accepted.quality("identity"):
        return replace(response, headers=headers)
    return replace(
        response,
        body=_ENCODERS[name](response.body),
        headers={**headers, "Content-Encoding": name},
    )


def _inflate(body: bytes, limit: int, name: str, wbits: int) -> bytes:
    """Decompress the members of a gzip body (RFC 1952), or the stream of a deflate
    body. Raises BodyTooLarge above `limit` bytes, and InvalidRequest for too many
    members, or invalid or truncated data.
    """
    most_members = _MOST_MEMBERS if wbits == _GZIP else 1
    view = memoryview(body)
    position = 0
    left_bytes = limit
    pieces: list[bytes] = []
    members = 0
    while position < len(view):
        members += 1
        if members > most_members:
            raise InvalidRequest(f"the {name} body has more than {most_members} members")
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            compressed: bytes | memoryview = stream.unconsumed_tail
            if not compressed:
                compressed = view[position : position + _PIECE_BYTES]
                position += len(compressed)
            if not compressed:
                raise InvalidRequest(f"the {name} body ends too early")
            try:
                piece = stream.decompress(compressed, left_bytes + 1)
            except zlib.error as error:
                raise InvalidRequest(f"the body is not valid {name}: {error}") from None
            if len(piece) > left_bytes:
                raise BodyTooLarge(_too_large(limit))
            left_bytes -= len(piece)
            pieces.append(piece)
        position -= len(stream.unused_data)
    return b"".join(pieces)


def _unzstd(body: bytes, limit: int) -> bytes:
    """Decompress a zstd frame (RFC 8878). The size that the frame declares is trusted
    only up to the limit. Raises BodyTooLarge above `limit` bytes, and InvalidRequest if
    the body is not one valid frame.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size != zstandard.CONTENTSIZE_UNKNOWN and size > limit:
            raise BodyTooLarge(_too_large(limit))
        return decompressor.decompress(body, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        reason = str(error)
    # The frame may declare no size: read it again, to distinguish a large frame from an
    # invalid one.
    read_bytes = 0
    with suppress(zstandard.ZstdError), decompressor.stream_reader(body) as stream:
        while read_bytes <= limit and (piece := stream.read(1024 * 1024)):
            read_bytes += len(piece)
        if read_bytes > limit:  # The frame is valid, but larger than the limit.
            raise BodyTooLarge(_too_large(limit))
    raise InvalidRequest(f"the body is not one valid zstd frame ({reason})")


def _too_large(limit: int) -> str:
    return f"the body is larger than this server's limit of {limit} bytes when decompressed"


_gunzip = partial(_inflate, name="gzip", wbits=_GZIP)
_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": partial(_inflate, name="deflate", wbits=zlib.MAX_WBITS),
    "zstd": _unzstd,
}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda body: zstandard.ZstdCompressor(level=_LEVEL).compress(body),
    "gzip": partial(zlib.compress, level=_LEVEL, wbits=_GZIP),
}
