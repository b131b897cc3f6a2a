"""Bodies that arrive piece by piece: by their declared length, or in chunks (RFC 9112, section 7.1)."""

import re
from collections.abc import Sequence
from typing import Protocol

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.server.http.head import CHUNKED, FIELD_BYTES, FIELDS

SLOWEST_BYTES_PER_SECOND = 1024
"""A request that comes more slowly is as good as silent, where others want its place."""
_CHUNK_LINE_BYTES = 1024
_STEPS = 1000
"""Of one `feed`: 256 KiB of the smallest chunks would hold the event loop for a tenth of a second."""
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")


class Body(Protocol):
    """Collects one body; `pieces`, joined, are its bytes as soon as `is_whole`."""

    is_whole: bool

    @property
    def received(self) -> int: ...

    @property
    def pieces(self) -> Sequence[bytes | bytearray]: ...

    def feed(self, data: bytes) -> bytes:
        """Takes what belongs to the body, gives back what it has not used; perhaps not all that it could use.

        Raises:
            InvalidRequest, BodyTooLarge: see `open_body`.
        """

    def take(self) -> bytes:
        """What has come since the last time, and is not kept any more."""

    def missing(self) -> str:
        """What has come, for the error that says that the rest did not."""


def open_body(length: int, limit: int) -> Body:
    """The collector of a body that is to come.

    Args:
        length: its bytes, or `CHUNKED`.
        limit: what it may have at most, in bytes.

    Raises:
        BodyTooLarge: its length is above the limit; of chunks, `feed` says so.
    """
    if length > limit:
        raise _too_large(limit)
    return _Chunks(limit) if length == CHUNKED else _Sized(length)


class _Sized:
    def __init__(self, length: int) -> None:
        self.pieces: list[bytes] = []
        self.is_whole = length == 0
        self._length = self._left = length

    @property
    def received(self) -> int:
        return self._length - self._left

    def feed(self, data: bytes) -> bytes:
        piece = data[: self._left]
        self.pieces.append(piece)
        self._left -= len(piece)
        self.is_whole = self._left == 0
        return data[len(piece) :]

    def take(self) -> bytes:
        taken = b"".join(self.pieces)
        self.pieces.clear()
        return taken

    def missing(self) -> str:
        return f"only {self.received} of the {self._length} bytes of the body arrived in time"


class _Chunks:
    """Within a chunk `_left` bytes are to come; after it, its line end; `_trailers` are counted after the last one."""

    def __init__(self, limit: int) -> None:
        self.is_whole = False
        self._content = bytearray()  # not a list of pieces: a million chunks of a byte would be a million objects
        self._limit = limit
        self._left = 0
        self._ends_chunk = False
        self._trailers = -1

    @property
    def received(self) -> int:
        return len(self._content)

    @property
    def pieces(self) -> Sequence[bytes | bytearray]:
        return [self._content]

    def feed(self, data: bytes) -> bytes:
        position = 0
        for _ in range(_STEPS):
            if self.is_whole or position == len(data):
                break
            if self._left:
                piece = data[position : position + self._left]
                self._content += piece
                self._left -= len(piece)
                position += len(piece)
            elif self._ends_chunk:
                ending = data[position : position + 2]
                if ending == b"\r":
                    break
                if ending != b"\r\n":
                    raise InvalidRequest("a chunk of the body is longer than its size says")
                position += 2
                self._ends_chunk = False
            else:
                end = self._line_end(data, position)
                if end < 0:
                    break
                self._read_line(data[position:end])
                position = end + 2
        return data[position:]

    def take(self) -> bytes:
        taken = bytes(self._content)
        self._content.clear()
        return taken

    def missing(self) -> str:
        return "the body broke off, did not arrive in time, or is not in valid chunks"

    def _line_end(self, data: bytes, position: int) -> int:
        """Where the line that begins here ends; -1: its end has not come yet."""
        most = _CHUNK_LINE_BYTES if self._trailers < 0 else FIELD_BYTES
        end = data.find(b"\r\n", position, position + most + 2)
        if (end < 0 and len(data) - position > most + 1) or b"\n" in data[position : end if end >= 0 else None]:
            raise InvalidRequest("the body is not in valid chunks: a line is too long, or ends without CR")
        return end

    def _read_line(self, line: bytes) -> None:
        if self._trailers >= 0:
            self._trailers += 1
            self.is_whole = not line
            if line and (self._trailers > FIELDS or not _TRAILER.fullmatch(line)):
                raise InvalidRequest("what follows the last chunk of the body is not a header field, or one too many")
            return
        match = _SIZE.fullmatch(line)
        if not match:
            raise InvalidRequest(f"{line[:40].decode('latin-1')!r} is not the size of a chunk, in hexadecimal digits")
        self._left = int(match[1], 16)
        if len(self._content) + self._left > self._limit:
            raise _too_large(self._limit)
        if self._left:
            self._ends_chunk = True
        else:
            self._trailers = 0


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than this server's limit of {limit} bytes")
