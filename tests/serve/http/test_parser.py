"""Request heads, and valid targets and hosts. `workers/test_connection.py` tests them
over sockets.

Bodies in pieces: the result does not depend on the splits.
"""

import itertools

import numpy as np
import pytest
from flask import Flask, request
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    OnnxserveError,
    TargetTooLong,
)
from mlflow_deploy_plugin.serve.http.parser import (
    CHUNKED,
    BodyParser,
    RequestHead,
    check_host,
    decode_path,
    parse_head,
    read_head,
)


def test_head_is_parsed():
    got = read_head(
        b"POST /v2/models/a%20b/infer?x=%2F HTTP/1.1\r\nHost: x:80\r\nContent-LENGTH: 007\r\n"
        b"Accept: a\r\n"
        b"ACCEPT:\t b \r\nx_y: z\r\nName: caf\xe9\r\nExpect: 100-Continue"
    )
    headers = {
        "host": "x:80",
        "content-length": "007",
        "accept": "a,b",
        "name": "café",
        "expect": "100-Continue",
    }
    assert got == RequestHead(
        "POST",
        "/v2/models/a b/infer",
        "x=%2F",
        headers,
        7,
        True,
        expects_continue=True,
        is_http_1_1=True,
    )


@pytest.mark.parametrize("before", [b"", b"\r\n"])
@pytest.mark.parametrize("line", [b"GET /ping HTTP/1.1", b"GET /" + b"a" * 8176 + b" HTTP/1.1"])
def test_incomplete_head_is_awaited_at_every_cut(before, line):
    data = before + line + b"\r\nHost: x\r\n\r\n"
    assert [parse_head(data[:end]) for end in range(len(data))] == [
        (None, data[:end]) for end in range(len(data))
    ]
    head, rest = parse_head(data + b"\r\nrest")
    assert head == read_head(data.removeprefix(b"\r\n")[:-4])
    assert rest == b"\r\nrest"


@pytest.mark.parametrize(
    ("head", "error", "said"),
    [
        (
            b"GET /" + b"a" * 8190 + b" HTTP/1.1\r\nHost: x",
            TargetTooLong,
            "longer than .* limit of 8190 bytes",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: x" + 17 * (b"\r\nA: " + b"a" * 8000),
            HeadersTooLarge,
            "together exceed",
        ),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b", InvalidRequest, "ends without CR"),
    ],
    ids=["line", "fields", "LF"],
)
def test_invalid_head_is_refused_while_it_arrives(head, error, said):
    with pytest.raises(error, match=said):
        parse_head(head + b"\r\n\r\n")
    with pytest.raises(error, match=said):
        parse_head(head)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue",
        b"POST / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue",
    ],
)
def test_client_without_body_is_not_sent_100_continue(head):
    assert not read_head(head).expects_continue


@pytest.mark.parametrize("host", ["", "x", "x:80", "10.0.0.1", "[::1]", "[::1]:8080", "a-b.c_d:"])
def test_valid_host_is_accepted(host):
    check_host(host)


@given(st.text(st.sampled_from("abc.%/0123456789ABCDEFabcdef-_~;=+"), max_size=30))
def test_path_is_decoded_like_flask(text):
    try:
        path = decode_path("/" + text)
    except InvalidRequest:
        return
    with Flask("x").test_request_context("/" + text):
        assert path == request.path


@given(st.binary(max_size=200))
def test_random_head_is_read_or_refused(text):
    for head in (text, b"GET / HTTP/1.1\r\n" + text, b"GET / HTTP/1.1\r\nHost: x\r\n" + text):
        try:
            got = read_head(head)
        except OnnxserveError:
            continue
        assert not {"\r", "\n", "\0"} & set(
            "".join([got.path, *got.headers, *got.headers.values()])
        )


AFTER = b"GET /next"


def fed(body, data, cuts):
    """Feed `data`, split at these positions, and return the rest."""
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
def test_chunks_are_joined(pieces, cuts):
    body = BodyParser(CHUNKED, len(b"".join(pieces)))
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    assert fed(body, chunks + b"0\r\nDigest: x\r\n\r\n" + AFTER, cuts) == AFTER
    assert body.is_whole
    assert body.content == b"".join(pieces)


@given(st.binary(min_size=1, max_size=300), CUTS)
def test_body_ends_at_declared_length(content, cuts):
    body = BodyParser(len(content), len(content))
    assert fed(body, content + AFTER, cuts) == AFTER
    assert body.content == content


@pytest.mark.parametrize("text_bytes", range(8))
def test_tensor_behind_text_is_aligned(text_bytes):
    content = bytes(text_bytes) + np.arange(10_000.0).tobytes()
    body = BodyParser(len(content), len(content), text_bytes)
    assert fed(body, content, [7_000, 20_000]) == b""
    assert body.content == content
    assert np.frombuffer(body.content, np.float64, offset=text_bytes).flags.aligned


def test_small_chunks_are_read_step_by_step():
    body = BodyParser(CHUNKED, 10**6)
    data = b"1\r\nx\r\n" * 10_000
    assert len(data) * 0.9 < len(body.feed(data)) < len(data)


@pytest.mark.parametrize("length", [101, CHUNKED])
def test_body_beyond_limit_is_refused(length):
    with pytest.raises(BodyTooLarge, match="100 bytes"):
        BodyParser(length, 100).feed(b"64\r\n" + b"x" * 100 + b"\r\n1\r\n")
