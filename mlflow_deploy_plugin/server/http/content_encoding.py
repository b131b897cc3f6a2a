"""Content-Encoding in both directions: bodies that come compressed, answers that are asked for compressed.

gzip (RFC 1952) and zstd (RFC 8878). What a body may take after decompression is what an uncompressed one may take:
`server.max_body_bytes`; no more memory than that is given to it, however much it promises.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import zstandard

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.negotiation import quality_values

COMPRESSED_FROM_BYTES = 16 * 1024
"""Smaller answers are sent as they are: they fit into the first packets of a connection anyway."""

_GZIP = zlib.MAX_WBITS + 16
_PIECE = 16 * 1024
"""What zlib is given at once: it copies the rest of it at the end of every member."""
_MOST_MEMBERS = 10_000
_ZSTD_WINDOW = 8 * 1024 * 1024
"""The window that RFC 9659 allows for the content encoding `zstd`."""
_LEVEL = 1
"""Both are several times faster at it than at their default, for answers that are a few per cent larger."""

_COMPRESSIBLE = (
    "application/json",
    "text/",
    "application/jsonl",
    "application/vnd.apache.arrow.",
    "application/x-ndjson",
)


def decode_body(request: RawRequest, limit: int) -> RawRequest:
    """The request with its Content-Encoding undone.

    A gzip body may have several members, as RFC 1952 says; a zstd body is one frame. An encoding upon another is
    refused: nothing sends it but an attempt to multiply the compression.

    Raises:
        UnsupportedMediaType: another encoding than gzip, zstd and identity, or several.
        InvalidRequest: the compressed data is broken or ends too early.
        BodyTooLarge: it is larger than `limit` bytes when decompressed.
    """
    given = request.headers.get("content-encoding")
    if given is None or not request.body:
        return request
    name = given.strip().lower()
    if name in ("identity", ""):
        return request
    undo = _DECODERS.get(name)
    if undo is None:
        what = "only one encoding is undone" if "," in name else "it is not known here"
        raise UnsupportedMediaType(f"the Content-Encoding is {given[:60]!r}; {what}: send gzip, zstd or identity")
    return replace(request, body=undo(request.body, limit))


def encode_body(request: RawRequest, response: RawResponse) -> RawResponse:
    """The answer, compressed if it is large and the caller's Accept-Encoding asks for it.

    What could be compressed says `Vary`, also where it is not, so that no cache gives it to the wrong caller.
    """
    if len(response.body) < COMPRESSED_FROM_BYTES or not response.content_type.startswith(_COMPRESSIBLE):
        return response
    headers = {**response.headers, "Vary": "Accept-Encoding"}
    name = _preferred(request.headers)
    if not name:
        return replace(response, headers=headers)
    return replace(response, body=_ENCODERS[name](response.body), headers={**headers, "Content-Encoding": name})


def _gunzipped(body: bytes, limit: int) -> bytes:
    """RFC 1952: members one after the other; only as much is decompressed as the limit leaves room for."""
    view, position, left = memoryview(body), 0, limit
    pieces: list[bytes] = []
    members = 0
    while position < len(view):
        members += 1
        if members > _MOST_MEMBERS:
            raise InvalidRequest(f"the gzip body has more than {_MOST_MEMBERS} members")
        position, left = _member(view, position, left, pieces, limit)
    return b"".join(pieces)


def _member(view: memoryview, position: int, left: int, pieces: list[bytes], limit: int) -> tuple[int, int]:
    """Decompresses the member at `position` onto `pieces`: where it ends, and how many bytes may still come."""
    stream = zlib.decompressobj(_GZIP)
    rest: bytes | memoryview = b""
    try:
        while not stream.eof:
            if not rest:
                rest = view[position : position + _PIECE]
                position += len(rest)
            if not rest:
                raise InvalidRequest("the gzip body ends too early")
            piece = stream.decompress(rest, left + 1)
            if len(piece) > left:
                raise BodyTooLarge(_too_large(limit))
            left -= len(piece)
            pieces.append(piece)
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid gzip: {error}") from None
    return position - len(stream.unused_data), left


def _unzstd(body: bytes, limit: int) -> bytes:
    """RFC 8878, one frame. A size that the frame declares is believed only as far as the limit goes."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size != zstandard.CONTENTSIZE_UNKNOWN and size > limit:
            raise BodyTooLarge(_too_large(limit))
        return decompressor.decompress(body, max_output_size=limit, allow_extra_data=False)
    except zstandard.ZstdError as error:
        reason = str(error).removeprefix("decompression error: ")
    if _is_longer(decompressor, body, limit):
        raise BodyTooLarge(_too_large(limit))
    raise InvalidRequest(f"the body is not one valid zstd frame: {reason}")


def _is_longer(decompressor: zstandard.ZstdDecompressor, body: bytes, limit: int) -> bool:
    """Whether a frame that did not come to its end within `limit` bytes has more of them."""
    read = 0
    try:
        with decompressor.stream_reader(body) as stream:
            while read <= limit and (piece := stream.read(1024 * 1024)):
                read += len(piece)
    except zstandard.ZstdError:
        return False
    return read > limit


def _too_large(limit: int) -> str:
    return f"the body is larger than this server's limit of {limit} bytes when decompressed"


def _preferred(headers: Mapping[str, str]) -> str:
    """The encoding that the caller likes best, zstd before gzip where both are liked as much; empty: none.

    RFC 9110, 12.5.3: `gzip;q=0` refuses, `*` stands for what is not named.
    """
    accepted = headers.get("accept-encoding")
    if not accepted:
        return ""
    liking = quality_values(accepted)
    best = max(_ENCODERS, key=lambda name: liking.get(name, liking.get("*", 0.0)))
    quality = liking.get(best, liking.get("*", 0.0))
    return best if quality > 0 and quality >= liking.get("identity", 0.0) else ""


def _zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(body)


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gunzipped, "x-gzip": _gunzipped, "zstd": _unzstd}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": _zstd,
    "gzip": partial(zlib.compress, level=_LEVEL, wbits=_GZIP),
}
