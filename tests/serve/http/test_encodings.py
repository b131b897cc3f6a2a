"""Compressed requests and responses: all codecs in both directions, and the cost of
hostile and truncated bodies.
"""

import contextlib
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

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


def streamed_zstd(data):
    """Return a frame that does not declare its length."""
    stream = zstandard.ZstdCompressor().compressobj()
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


def undo(body, encoding, limit=LIMIT):
    return decode_body(
        RawRequest("POST", "/invocations", {"content-encoding": encoding}, body), limit
    ).body


@pytest.mark.parametrize("encoding", COMPRESS)
@given(body=st.binary(max_size=10_000))
def test_a_compressed_body_comes_back_as_it_was(encoding, body):
    assert undo(COMPRESS[encoding](body), encoding) == body


def test_a_body_without_an_encoding_is_the_same_object():
    request = RawRequest("POST", "/invocations", {}, b"x")
    assert decode_body(request, LIMIT) is request


@given(parts=st.lists(st.binary(max_size=1000), min_size=1, max_size=5))
def test_the_members_of_a_gzip_body_are_one_body(parts):
    assert undo(b"".join(map(gzip.compress, parts)), "gzip") == b"".join(parts)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", " zstd "])
def test_the_limit_holds_to_the_byte(encoding):
    assert undo(COMPRESS[encoding](b"x" * LIMIT), encoding) == b"x" * LIMIT
    with pytest.raises(BodyTooLarge, match="1000000 bytes"):
        undo(COMPRESS[encoding](b"x" * (LIMIT + 1)), encoding)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", " zstd "])
def test_a_bomb_costs_no_more_memory_than_the_limit(encoding):
    bomb = COMPRESS[encoding](bytes(300_000_000))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        undo(bomb, encoding)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * LIMIT


def test_a_frame_that_declares_a_petabyte_is_not_believed():
    frame = b"\x28\xb5\x2f\xfd\xe0" + (2**50).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(BodyTooLarge):
        undo(frame, "zstd")


def test_a_body_of_empty_members_is_refused_soon():
    with pytest.raises(InvalidRequest, match="members"):
        undo(gzip.compress(b"") * 100_000, "gzip")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", " zstd "])
@given(cut=st.integers(1, 60), flipped=st.integers(0, 40))
def test_a_torn_body_is_refused_in_one_line(encoding, cut, flipped):
    whole = COMPRESS[encoding](b"0123456789" * 20)
    torn = whole[: max(1, len(whole) - cut)]
    bent = bytearray(whole)
    bent[flipped % len(bent)] ^= 0x55
    with pytest.raises(InvalidRequest):
        undo(torn, encoding)
    with contextlib.suppress(InvalidRequest):  # A changed header field may be ignored.
        undo(bytes(bent), encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("body", [b"{}", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", bytes(30)])
def test_a_body_that_is_not_compressed_at_all_is_refused(encoding, body):
    with pytest.raises(InvalidRequest, match=encoding):
        undo(body, encoding)


def test_trailing_data_after_a_compressed_body_is_refused():
    with pytest.raises(InvalidRequest):
        undo(gzip.compress(b"x") + b"junk", "gzip")
    with pytest.raises(InvalidRequest):
        undo(zlib.compress(b"x") * 2, "deflate")
    with pytest.raises(InvalidRequest):
        undo(zstandard.compress(b"x") + b"junk", "zstd")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "gzip,zstd", "x" * 1000])
def test_an_unknown_encoding_is_refused_with_those_that_are_known(encoding):
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
        ("", None),
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.5, gzip", "gzip"),
        ("gzip;q=0, zstd;q=0", None),
        ("*", "zstd"),
        ("*;q=0.1, zstd;q=0", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=much", None),
        ("gzip;q=nan", None),
        ("br", None),
        ("GZIP", "gzip"),
        (",;,;q=", None),
    ],
)
def test_an_answer_is_compressed_as_the_caller_asks(accepted, expected):
    response = compressed(accepted)
    assert response.headers.get("Content-Encoding") == expected
    assert response.headers["Vary"] == "Accept-Encoding"
    undone: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "zstd": zstandard.decompress,
        None: bytes,
    }
    assert undone[expected](response.body) == LARGE


def test_small_answers_and_those_that_are_compressed_already_stay_as_they_are():
    small = RawResponse(200, b"x" * (COMPRESSED_FROM_BYTES - 1))
    picture = RawResponse(200, LARGE, "image/png")
    assert compressed("gzip", small) is small
    assert compressed("gzip", picture) is picture


@pytest.fixture
def server(serve_here, model_folders):
    return serve_here(one_endpoint(model_folders["single"]))


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/e/invocations", "/predict/batch"])
def test_every_route_takes_a_compressed_body(server, path):
    plain = b'{"instances": [[1, 2, 3]]}'
    response = ask(server, path, body=gzip.compress(plain), content_encoding="gzip")
    assert response.status == 200
    assert json.loads(response.body)["predictions"] == [[6.0]]


def test_a_bomb_is_answered_with_413_and_a_foreign_encoding_with_415(server):
    bomb = ask(server, body=gzip.compress(bytes(20_000_000)), content_encoding="gzip")
    foreign = ask(server, "/v2/models/e/infer", body=b"x", content_encoding="br")
    assert bomb.status == 413
    assert json.loads(bomb.body)["error_code"] == "BAD_REQUEST"
    assert (foreign.status, "gzip" in json.loads(foreign.body)["error"]) == (415, True)
    assert ask(server).status == 200


def test_a_large_answer_of_a_server_is_compressed(server):
    rows = {"inputs": [[1, 2, 3]] * 5000}
    response = ask(server, body=rows, accept_encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    assert json.loads(zlib.decompress(response.body, 31))["predictions"] == [[6.0]] * 5000
