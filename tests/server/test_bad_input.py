"""Every bad input through real gunicorn: a 4xx that says what was wrong, no traceback, the next request is served."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

GOOD = {"dataframe_split": {"columns": ["carrier", "distance", "hour", "late"], "data": [["AA", 100.5, 3, True]]}}
JSON = "application/json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path], tools: Any) -> Iterator[Any]:
    state_dir = tmp_path_factory.mktemp("state")
    tools.want(state_dir, 1, {"flights": {"flights": tools.variant(model_folders["mixed"])}})
    with tools.gunicorn(state_dir) as running:
        yield running


def split(columns: list[Any], *rows: list[Any]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": list(rows)}}


ALL = ["carrier", "distance", "hour", "late"]
JSON_CASES: list[tuple[str, Any, list[str]]] = [
    ("missing column", split(ALL[:3], ["AA", 1.0, 3]), ["'late'", "missing"]),
    ("a string for a double", split(ALL, ["AA", "far", 3, True]), ["'distance'", "row 0", "'far'", "a number"]),
    ("a fraction for a long", split(ALL, ["AA", 1.0, 3, True], ["AA", 1.0, 3.5, True]), ["'hour'", "row 1", "3.5"]),
    ("a number for a boolean", split(ALL, ["AA", 1.0, 3, 1]), ["'late'", "row 0", "1", "true or false"]),
    ("a number for a string", split(ALL, [5, 1.0, 3, True]), ["'carrier'", "row 0", "5", "a string"]),
    ("null for a long", split(ALL, ["AA", 1.0, None, True]), ["'hour'", "row 0", "null"]),
    ("too large for a long", split(ALL, ["AA", 1.0, 2**63, True]), ["'hour'", "row 0", str(2**63)]),
    ("an object for a double", split(ALL, ["AA", {"x": 1}, 3, True]), ["'distance'", "row 0"]),
    ("empty frame", split(ALL), ["no rows"]),
    ("empty records", {"dataframe_records": []}, ["no rows"]),
    ("empty instances", {"instances": []}, ["no rows"]),
    ("empty inputs", {"inputs": {}}, ["'carrier'", "missing"]),
    (
        "uneven columns",
        {"inputs": {"carrier": ["A"], "distance": [1, 2], "hour": [1], "late": [True]}},
        ["'distance'", "2"],
    ),
    (
        "a scalar for a column",
        {"inputs": {"carrier": "A", "distance": [1], "hour": [1], "late": [True]}},
        ["'carrier'"],
    ),
    ("a doubled column", split([*ALL, "late"], ["A", 1, 1, True, True]), ["'late'", "twice"]),
    ("a short row", split(ALL, ["AA", 1.0, 3]), ["row 0", "4 values"]),
    ("a row that is no list", split(ALL, 7), ["row 0", "7"]),  # type: ignore[arg-type]
    ("records that are none", {"dataframe_records": [1]}, ["row 0"]),
    ("columns that are no names", split([["x"], {}], [1, 2]), ["columns"]),
    ("split without data", {"dataframe_split": {"columns": ALL}}, ["data"]),
    ("split as a list", {"dataframe_split": []}, ["dataframe_split"]),
    ("inputs as a number", {"inputs": 5}, ["inputs", "number"]),
    ("instances as null", {"instances": None}, ["instances", "null"]),
    ("no field", {"columns": ALL, "data": []}, ["dataframe_split", "instances", "'columns'"]),
    ("two fields", {"inputs": [], "instances": []}, ["exactly one", "'inputs'"]),
    ("an array", [1, 2], ["array", "object"]),
    ("params that are none", {**GOOD, "params": [1]}, ["params"]),
    ("nested beyond reason", {"instances": [[[[[[[["x"]]]]]]], "A", 1, 1]}, ["row 0"]),
]
RAW_CASES: list[tuple[str, bytes, str | None, int, list[str]]] = [
    ("wrong JSON", b'{"inputs": [1, ', JSON, 400, ["not valid JSON", "line 1"]),
    ("no body", b"", JSON, 400, ["empty"]),
    ("not UTF-8", b'{"inputs": "\xff"}', JSON, 400, ["not valid JSON"]),
    ("depth 100,000", b"[" * 100_000 + b"]" * 100_000, JSON, 400, ["not valid JSON"]),
    ("depth 100,000 and NaN", b"[" * 100_000 + b"NaN" + b"]" * 100_000, JSON, 400, ["not valid JSON"]),
    ("depth 900", b'{"instances": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", JSON, 400, ["row 0"]),
    (
        "depth 900 in a field",
        b'{"instances": [["A", ' + b"[" * 900 + b"]" * 900 + b", 1, true]]}",
        JSON,
        400,
        ["row 0"],
    ),
    ("unknown type", b"<xml/>", "application/xml", 415, ["application/xml", "application/json", "text/csv"]),
    ("no content type", b"{}", None, 415, ["no Content-Type"]),
    ("a foreign charset", b"{}", "application/json; charset=latin-1", 415, ["latin-1", "UTF-8"]),
    ("20 MB", b"x" * 20_000_000, JSON, 413, ["16777216"]),
    ("empty CSV", b"", "text/csv", 400, ["empty"]),
    ("CSV of a header", b"carrier,distance,hour,late\n", "text/csv", 400, ["no rows"]),
    ("CSV, wrong type", b"carrier,distance,hour,late\nA,x,1,true\n", "text/csv", 400, ["'distance'", "row 0", "'x'"]),
    ("CSV, no boolean", b"carrier,distance,hour,late\nA,1,1,maybe\n", "text/csv", 400, ["'late'", "'maybe'"]),
    ("CSV, missing column", b"carrier,distance,hour\nA,1,1\n", "text/csv", 400, ["'late'", "missing"]),
    ("CSV, long row", b"carrier,distance,hour,late\nA,1,1,true,5\n", "text/csv", 400, ["row 0", "5 fields"]),
    ("CSV, open quote", b'carrier,distance,hour,late\n"A,1,1,true\n', "text/csv", 400, ["not valid CSV"]),
    ("CSV, NUL", b"carrier,distance,hour,late\nA\0,1,x,true\n", "text/csv", 400, ["'hour'"]),
    ("CSV, not UTF-8", b"carrier\n\xff\n", "text/csv", 400, ["UTF-8", "byte 8"]),
    ("CSV, a giant field", b"carrier\n" + b"x" * 200_000, "text/csv", 400, ["not valid CSV"]),
]


def check(server: Any, response: Any, status: int, words: list[str]) -> None:
    assert response.status_code == status, response.text
    error = response.json()
    assert set(error) == {"error_code", "message"}
    assert error["error_code"] == "BAD_REQUEST"
    assert len(error["message"]) < 1000
    assert "Traceback" not in response.text
    for word in words:
        assert word in error["message"]
    follower = server.post(json=GOOD)
    assert (follower.status_code, follower.json()) == (200, {"predictions": ["yes"]})


@pytest.mark.parametrize(("body", "words"), [case[1:] for case in JSON_CASES], ids=[case[0] for case in JSON_CASES])
def test_json_that_does_not_fit_is_refused_by_name(server: Any, body: Any, words: list[str]) -> None:
    check(server, server.post(json=body), 400, words)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"), [case[1:] for case in RAW_CASES], ids=[case[0] for case in RAW_CASES]
)
def test_a_body_that_cannot_be_read_is_refused(
    server: Any, body: bytes, content_type: str | None, status: int, words: list[str]
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    check(server, server.post(data=body, headers=headers), status, words)


def test_a_chunked_body_beyond_the_limit_is_refused(server: Any) -> None:
    pieces = (b"x" * 1_000_000 for _ in range(20))
    check(server, server.post(data=pieces, headers={"Content-Type": JSON}), 413, ["16777216"])


def test_a_declared_terabyte_is_refused_without_being_read(server: Any, tools: Any) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = tools.exchange(server.url, head + b"Content-Length: 999999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert server.post(json=GOOD).status_code == 200


@pytest.mark.parametrize("time", ["yesterday", "2013-07-01T12:30:00", "", "9999-99-99T00:00:00Z"])
def test_an_event_time_that_is_none_is_refused(server: Any, time: str) -> None:
    check(server, server.post(json=GOOD, headers={"X-Event-Time": time}), 400, ["X-Event-Time", "RFC 3339"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "ENDPOINT_NOT_FOUND"),
        ("POST", "/endpoints//invocations", 400, "BAD_REQUEST"),
        ("POST", "/endpoints/none/invocations", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("GET", "/invocations", 405, "BAD_REQUEST"),
        ("GET", "/endpoints/flights/invocations", 405, "BAD_REQUEST"),
        ("POST", "/ping", 405, "BAD_REQUEST"),
        ("OPTIONS", "/invocations", 405, "BAD_REQUEST"),
        ("BREW", "/invocations", 405, "BAD_REQUEST"),
    ],
)
def test_what_is_not_there_is_said_in_json(server: Any, method: str, path: str, status: int, code: str) -> None:
    response = requests.request(method, server.url + path, timeout=30)
    assert response.status_code == status
    assert response.json()["error_code"] == code


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize(
    "body", [{"carrier": "A"}, [1], {"features": 1}, {"features": [1, 2]}, {"instances": 4}, None, 7]
)
def test_the_short_protocol_refuses_as_clearly(server: Any, path: str, body: Any) -> None:
    check(server, server.post(path, data=json.dumps(body), headers={"Content-Type": JSON}), 400, [])


def test_none_of_it_left_a_traceback_in_the_log(server: Any) -> None:
    assert "Traceback" not in server.log.read_text()
