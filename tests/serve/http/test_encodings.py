"""Compressed requests and responses: all codecs in both directions, and the cost of
hostile and truncated bodies.
"""

import contextlib
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import product

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from mlflow_deploy_plugin.serve.http.encodings import (
    COMPRESSED_FROM_BYTES,
    decode_body,
    encode_body,
)
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.handling import ask
from tests.support.servers import one_endpoint

LIMIT = 1_000_000


def streamed_zstd(data, parameters=None):
    """Return a frame that does not declare its length."""
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(data) + stream.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    " zstd ": streamed_zstd,
    "identity": bytes,
}


LARGE_WINDOW = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
"""The decoder would allocate 128 MiB."""


def undo(body, encoding):
    return decode_body(
        RawRequest("POST", "/invocations", {"content-encoding": encoding}, body), LIMIT
    ).body


@pytest.mark.parametrize("encoding", COMPRESS)
@given(body=st.binary(max_size=10_000))
def test_compressed_body_is_decoded(encoding, body):
    assert undo(COMPRESS[encoding](body), encoding) == body


def test_plain_body_is_not_copied():
    request = RawRequest("POST", "/invocations", {}, b"x")
    assert decode_body(request, LIMIT) is request


@given(parts=st.lists(st.binary(max_size=1000), min_size=1, max_size=5))
def test_gzip_members_are_one_body(parts):
    assert undo(b"".join(map(gzip.compress, parts)), "gzip") == b"".join(parts)


FORMATS = pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", " zstd "])


@FORMATS
def test_limit_holds_to_the_byte(encoding):
    assert undo(COMPRESS[encoding](b"x" * LIMIT), encoding) == b"x" * LIMIT
    with pytest.raises(BodyTooLarge, match="1000000 bytes"):
        undo(COMPRESS[encoding](b"x" * (LIMIT + 1)), encoding)


@pytest.mark.long
@FORMATS
def test_memory_of_bomb_is_bounded(encoding):
    bomb = COMPRESS[encoding](bytes(300_000_000))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        undo(bomb, encoding)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * LIMIT


def test_declared_size_is_not_believed():
    frame = b"\x28\xb5\x2f\xfd\xe0" + (2**50).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(BodyTooLarge):
        undo(frame, "zstd")


@FORMATS
@given(cut=st.integers(1, 60), flipped=st.integers(0, 40))
def test_torn_body_is_refused(encoding, cut, flipped):
    whole = COMPRESS[encoding](b"0123456789" * 20)
    bent = bytearray(whole)
    bent[flipped % len(bent)] ^= 0x55
    with pytest.raises(InvalidRequest):
        undo(whole[: max(1, len(whole) - cut)], encoding)
    with contextlib.suppress(InvalidRequest):  # A changed header field may be ignored.
        undo(bytes(bent), encoding)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        *product(["gzip", "deflate", "zstd"], [b"{}", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", bytes(30)]),
        ("gzip", gzip.compress(b"x", mtime=0) + b"junk"),
        ("gzip", gzip.compress(b"", mtime=0) * 100_000),
        ("deflate", zlib.compress(b"x") * 2),
        ("zstd", zstandard.compress(b"x") + b"junk"),
        ("zstd", streamed_zstd(b"x", LARGE_WINDOW)),
    ],
)
def test_malformed_body_is_refused(encoding, body):
    with pytest.raises(InvalidRequest):
        undo(body, encoding)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "gzip,zstd", "x" * 1000])
def test_unknown_encoding_is_refused(encoding):
    with pytest.raises(UnsupportedMediaType, match="gzip, deflate, zstd"):
        undo(b"x", encoding)


LARGE = b'{"predictions":[' + b"0.5," * 10_000 + b"1]}"


def compressed(accepted, response=None):
    headers = {} if accepted is None else {"accept-encoding": accepted}
    return encode_body(
        RawRequest("POST", "/invocations", headers, b""), response or RawResponse(200, LARGE)
    )


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        (None, None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.5, gzip", "gzip"),
        ("gzip;q=0, zstd;q=0", None),
        ("*", "zstd"),
        ("*;q=0.1, zstd;q=0", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=much", None),
        ("gzip;q=nan", None),
        ("br", None),
        (",;,;q=", None),
    ],
)
def test_answer_has_accepted_encoding(accepted, expected):
    response = compressed(accepted)
    assert response.headers.get("Content-Encoding") == expected
    assert response.headers["Vary"] == "Accept-Encoding"
    undone: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "zstd": zstandard.decompress,
        None: bytes,
    }
    assert undone[expected](response.body) == LARGE


def test_small_or_compressed_answer_is_unchanged():
    small = RawResponse(200, b"x" * (COMPRESSED_FROM_BYTES - 1))
    picture = RawResponse(200, LARGE, "image/png")
    assert compressed("gzip", small) is small
    assert compressed("gzip", picture) is picture


def test_server_decodes_and_encodes_bodies(serve_here, model_folders):
    server = serve_here(one_endpoint(model_folders["single"]))
    rows = b'{"instances": [' + b"[1, 2, 3]," * 5000 + b"[1, 2, 3]]}"
    response = ask(
        server, body=gzip.compress(rows), content_encoding="gzip", accept_encoding="gzip"
    )
    assert response.headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(response.body))["predictions"] == [[6.0]] * 5001
