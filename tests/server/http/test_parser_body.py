"""Bodies in pieces: the result does not depend on the cuts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.errors import BodyTooLarge, InvalidRequest
from mlflow_deploy_plugin.server.http.parser import CHUNKED, BodyParser, body_parser

AFTER = b"GET /next"


def fed(body: BodyParser, data: bytes, cuts: list[int]) -> bytes:
    """Feed `data` cut at these positions, and return the rest."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    left = b""
    for start, end in itertools.pairwise(edges):
        left += data[start:end]
        before = -1
        while not body.is_whole and len(left) != before:
            before = len(left)
            left = body.feed(left)
    return left


CUTS = st.lists(st.integers(0, 10_000), max_size=20)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), CUTS)
def test_chunks_are_joined(pieces: list[bytes], cuts: list[int]) -> None:
    body = body_parser(CHUNKED, 10_000)
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    assert fed(body, chunks + b"0\r\nDigest: x\r\n\r\n" + AFTER, cuts) == AFTER
    assert body.is_whole
    assert b"".join(body.pieces) == b"".join(pieces)


@given(st.binary(min_size=1, max_size=300), CUTS)
def test_a_declared_length_is_taken_and_no_more(content: bytes, cuts: list[int]) -> None:
    body = body_parser(len(content), 300)
    assert fed(body, content + AFTER, cuts) == AFTER
    assert b"".join(body.pieces) == content


def test_a_million_small_chunks_are_taken_step_by_step() -> None:
    body = body_parser(CHUNKED, 10**6)
    data = b"1\r\nx\r\n" * 10_000
    assert len(data) * 0.9 < len(body.feed(data)) < len(data)


@pytest.mark.parametrize("length", [101, CHUNKED])
def test_a_body_beyond_the_limit_is_refused_before_it_is_held(length: int) -> None:
    with pytest.raises(BodyTooLarge, match="100 bytes"):
        body_parser(length, 100).feed(b"64\r\n" + b"x" * 100 + b"\r\n1\r\n")


@pytest.mark.parametrize(
    "data", [b"x\r\n", b"\r\n", b" 1\r\n", b"1 \r\nx", b"1\rx", b"1\nx", b"1" * 16 + b"\r\n", b"1;" + b"a" * 2000]
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    body = body_parser(CHUNKED, 10**6)
    with pytest.raises(InvalidRequest):
        fed(body, data + b"\r\n\r\n", [])
