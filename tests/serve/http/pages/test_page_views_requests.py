"""The page Requests shows the last requests, and withholds values from strangers."""

import json
import os
import re
import signal
import time
from itertools import chain
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import METRICS, SPOOL, read_workers
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.app import ServerApp
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.http.streaming import stream_predictions
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.serve.spool.frames import MAGIC
from mlflow_deploy_plugin.serve.spool.writer import MAX_SEGMENT_BYTES
from tests.support import page_models
from tests.support.bodies import v2_tensor
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings, chromium
from tests.support.handling import JSON, ask, ask_wsgi, handle
from tests.support.keys import write_keys
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, ping, variant, want, write_spec
from tests.support.waiting import wait_until

FLIGHT = {"carrier": "AA", "distance": 1400.5, "hour": 7, "late": False}
NAMED = {"host": "127.0.0.1:8080"}


@pytest.fixture
def flights(model_folders):
    return {"flights": {"v": variant(model_folders["mixed"], "7")}}


def flight(path="/invocations", rows=1, **changed):
    body = json.dumps({"dataframe_records": [{**FLIGHT, **changed}] * rows}).encode()
    return RawRequest("POST", path, JSON, body)


def shown(server, path="/requests", **headers):
    response = ask(server, path, "GET", b"", **{**NAMED, "accept": "*/*", **headers})
    assert response.status == 200, response.body
    rows: list[dict[str, Any]] = json.loads(response.body)["requests"]
    return rows


def page(server, path="/requests", query="", **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    response = handle(
        server,
        RawRequest("GET", path, {**NAMED, "accept": "text/html", **fields}, b"", query=query),
    )
    assert response.status == 200
    assert response.content_type.partition(";")[0] == "text/html"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    return response.body.decode()


def test_a_prediction_is_shown_with_its_first_row(serve_here, flights):
    server = serve_here(flights)
    before = time.time()
    answered = handle(server, flight(rows=3))
    (row,) = shown(server)
    assert row["prediction_id"] == answered.headers["X-Prediction-Id"]
    assert row["status"] == 200
    assert row["endpoint"] == "flights"
    assert row["variant"] == "v"
    assert row["version"] == "7"
    assert row["protocol"] == "invocations"
    assert row["rows"] == 3
    assert row["values"] == {"carrier": "AA", "distance": "1400.5", "hour": "7", "late": "false"}
    assert row["predictions"]["prediction"] == "yes"
    probabilities = row["predictions"]["output.probabilities"].split(", ")
    assert [f"{float(number):.6g}" for number in probabilities] == probabilities
    assert 0 < row["milliseconds"] < (time.time() - before) * 1000
    for text in (page(server), page(server, "/endpoints/flights/requests")):
        assert mentions(
            text, "200", "1400.5", "invocations", f"onnxserve replay {row['prediction_id']}"
        )


def found(server, find, path="/requests", **headers):
    request = RawRequest(
        "GET", path, {**NAMED, "accept": "*/*", **headers}, b"", query=urlencode({"find": find})
    )
    rows: list[dict[str, Any]] = json.loads(handle(server, request).body)["requests"]
    return rows


def test_a_request_has_its_business_ids_and_event_time_and_is_found_by_them(serve_here, flights):
    server = serve_here(flights, keys=["ticket"])
    handle(server, flight(ticket="006"))
    dated = flight(rows=2, ticket="007")
    dated.headers = {**dated.headers, "x-event-time": "2013-07-04T12:30:00Z"}
    answered = handle(server, dated)
    for _ in range(2 * 50):  # The page lists the last 100 requests.
        handle(server, flight(distance="far"))
    row = found(server, "007")[0]
    assert row["keys"] == {"ticket": "007"}
    assert row["event_time"] == "2013-07-04T12:30:00.000+00:00"
    assert row["values"]["carrier"] == "AA"
    ids = [row["prediction_id"]]
    assert ids == [answered.headers["X-Prediction-Id"]]
    for text in ("007", "2013-07-04", "2013-07-04 12:30", "2013-07-04T12:30:00Z", *ids):
        assert [match["prediction_id"] for match in found(server, text)] == ids, text
    for text in ("7", "2013", "2013-07-04 13", "008"):
        assert found(server, text) == [], text
    (other,) = found(server, "006", "/endpoints/flights/requests")
    assert other["keys"] == {"ticket": "006"}
    assert other["event_time"] == ""
    html = page(server, query="find=007")
    assert mentions(html, 'value="007"', "2013-07-04", "onnxserve log query NAME")
    assert 'href="/requests?status=4xx&amp;find=007"' in html


def test_a_masked_business_id_is_found_only_by_its_hash_and_strangers_find_nothing(
    serve_here, flights
):
    server = serve_here(flights, keys=["ticket"], mask=["ticket"])
    handle(server, flight(ticket="secret"))
    (row,) = shown(server)
    hashed = row["keys"]["ticket"]
    assert "secret" not in page(server)
    assert len(found(server, hashed)) == 1
    assert found(server, "secret") == []
    stranger = {"host": "rebound.example"}
    # The query is ignored.
    assert [match["keys"] for match in found(server, hashed, **stranger)] == [{}]
    assert "<form" not in page(server, **stranger)


def test_a_plan_remembers_the_same_as_the_general_path(serve_here, flights):
    server = serve_here(flights)
    handle(server, flight())
    assert PlanTable(server).answer(flight()) is not None
    planned, general = (
        {**row, "time": "", "milliseconds": 0, "prediction_id": ""} for row in shown(server)
    )
    assert planned == general


def test_requests_of_every_kind_are_shown(serve_here, flights):
    server = serve_here(flights)
    lines = b"\n".join([json.dumps(FLIGHT).encode()] * 2)
    request = RawRequest("POST", "/invocations", {"content-type": "application/jsonl"}, b"")
    streamed = stream_predictions(server, request, [lines])
    assert streamed.pieces is not None
    list(streamed.pieces)
    assert ask(server, "/explain", body=b"{}").status == 400
    assert ask(server, "/endpoints/none/invocations").status == 404
    assert ask(server, "/none", "GET").status == 404
    assert ask(server, "/invocations", "GET").status == 405
    assert ask(server, "/feedback", body=b"{").status == 400
    seen = [
        (row["protocol"], row["status"], row["endpoint"], row["rows"])
        for row in reversed(shown(server))
    ]
    assert seen == [
        ("invocations", 200, "flights", 2),
        ("explain", 400, "flights", None),
        ("invocations", 404, "", None),
        ("GET /none", 404, "", None),
        ("GET /invocations", 405, "", None),
        ("POST /feedback", 400, "", None),
    ]
    assert [row["protocol"] for row in shown(server, "/endpoints/flights/requests")] == [
        "explain",
        "invocations",
    ]
    unknown = next(row for row in shown(server) if row["error_code"] == "RESOURCE_DOES_NOT_EXIST")
    assert mentions(unknown["message"], "'none'", "'flights'")


def test_a_failure_is_shown_with_its_message(serve_here, flights):
    server = serve_here(flights)
    assert handle(server, flight(distance="far")).status == 400
    (row,) = shown(server)
    assert row["error_code"] == "BAD_REQUEST"
    assert row["values"] == {}
    assert row["predictions"] == {}
    assert mentions(row["message"], "'distance'", "'far'")
    assert "far" in page(server)


@pytest.mark.parametrize(
    "excluded", [{"drop": ["carrier", "output.probabilities"]}, {"mask": ["carrier"]}]
)
def test_columns_that_are_not_captured_are_not_shown(serve_here, flights, excluded):
    server = serve_here(flights, **excluded)
    handle(server, flight(carrier="secret-1"))
    handle(server, flight(distance="secret-2"))
    failed, answered = shown(server)
    if "mask" in excluded:
        state_dir = server.repository.state_dir
        (masked,) = (
            ColumnMask(state_dir / MASK_KEY)
            .hash_values({"carrier": "secret-1"}, frozenset(["carrier"]))
            .values()
        )
        assert answered["values"]["carrier"] == masked
    else:
        assert "carrier" not in answered["values"]
        assert list(answered["predictions"]) == ["prediction"]
    assert answered["values"]["distance"] == "1400.5"
    assert failed["error_code"] == "BAD_REQUEST"
    assert failed["message"] == ""
    assert "secret" not in page(server)
    server.recent.write()
    files = [
        file
        for file in [*server.repository.state_dir.rglob("*"), *server.metrics.folder.rglob("*")]
        if file.is_file()
    ]
    assert any(file.name.startswith("requests_") for file in files)
    assert not any(b"secret" in file.read_bytes() for file in files)


def test_requests_that_are_not_sampled_are_shown_without_values(serve_here, flights):
    server = serve_here(flights, fraction=0.0)
    handle(server, flight())
    handle(server, flight(distance="far"))
    failed, answered = shown(server)
    assert answered["status"] == 200
    assert answered["values"] == {}
    assert answered["predictions"] == {}
    assert failed["status"] == 400
    assert failed["error_code"] == "BAD_REQUEST"
    assert failed["message"] == ""
    assert "onnxserve replay" not in page(server)


def test_a_prediction_without_rows_does_not_hide_other_requests(serve_here, tmp_path):
    server = serve_here({"digits": {"v": variant(page_models.digits_model(tmp_path / "digits"))}})
    for rows in (0, 1):
        entry = v2_tensor("image", "FP32", [0.5] * 64 * rows, [rows, 1, 8, 8])
        assert ask(server, "/v2/models/digits/infer", body={"inputs": [entry]}).status == 200
    filled, empty = shown(server)
    assert list(filled["values"]) == ["image"]
    assert empty["values"] == {}
    assert empty["rows"] is None


def test_a_damaged_spool_costs_only_the_values(serve_here, flights):
    server = serve_here(flights)
    spool = server.repository.state_dir / SPOOL
    handle(server, flight())
    (segment,) = spool.glob("*.seg")
    (spool / "folder.seg").mkdir()  # It cannot be read, like a segment without permission.
    os.utime(spool / "folder.seg", (0, 0))
    assert shown(server)[0]["values"]["carrier"] == "AA"
    content = segment.read_bytes()
    for damaged in (
        b"",
        b"OXS4",
        os.urandom(100),
        content[:-1],
        content[5:],
        bytes(len(content)),
        MAGIC * 1000,
    ):
        segment.write_bytes(damaged)
        assert [(row["status"], row["values"]) for row in shown(server)] == [(200, {})]


def test_the_page_of_many_workers_reads_a_bounded_part_of_the_spool(serve_here, flights):
    server = serve_here(flights, {"workers": 64})
    spool = server.repository.state_dir / SPOOL
    spool.mkdir(exist_ok=True)
    for number in range(60):
        with (spool / f"{number}.seg").open("wb") as file:
            file.truncate(MAX_SEGMENT_BYTES)
    handle(server, flight())
    began = time.process_time()
    assert shown(server)[0]["values"]["carrier"] == "AA"
    assert time.process_time() - began < 1


def test_long_values_and_tensors_are_cut(serve_here, model_folders, tmp_path):
    digits = page_models.digits_model(tmp_path / "digits")
    server = serve_here(
        {"flights": {"v": variant(model_folders["mixed"])}, "digits": {"v": variant(digits)}}
    )
    handle(server, flight(carrier="x" * 10_000))
    ask(server, "/endpoints/digits/invocations", body={"inputs": [[[[0.5] * 8] * 8]]})
    picture, text = shown(server)
    assert picture["values"] == {"image": ", ".join(["0.5"] * 8) + ", …"}
    assert 100 < len(text["values"]["carrier"]) < 1000


def test_requests_are_filtered_by_status_even_if_others_are_more_frequent(serve_here, flights):
    server = serve_here(flights)
    handle(server, flight(distance="far"))
    for _ in range(150):
        handle(server, flight())
    queried = RawRequest("GET", "/requests", {**NAMED, "accept": "*/*"}, b"", query="status=4xx")
    for query, seen in (
        ("4xx", {400}),
        ("400", {400}),
        ("2xx", {200}),
        ("5xx", set()),
        ("%3Cscript%3E", set()),
    ):
        queried.query = f"status={query}"
        assert {
            row["status"] for row in json.loads(handle(server, queried).body)["requests"]
        } == seen
    queried.headers = {**NAMED, "accept": "text/html"}
    assert b"<script>" not in handle(server, queried).body


def test_hostile_names_values_and_paths_stay_text(serve_here, tmp_path):
    # A spec rejects such a name; wanted.json does not.
    name = page_models.HOSTILE.replace("/", "-")
    hostile = {"v": variant(page_models.hostile_model(tmp_path / "hostile"))}
    server = serve_here({"e": hostile, name: hostile})
    columns = [page_models.HOSTILE, page_models.QUOTED]
    body = json.dumps(
        {"dataframe_split": {"columns": columns, "data": [[1.5, 2.0], [1.0, 2.0]]}}
    ).encode()
    assert ask(server, f"/endpoints/{name}/invocations", body=body).status == 200
    assert (
        ask(
            server, f"/endpoints/{name}/invocations", body=body.replace(b"1.5", b'"<img src=x>"')
        ).status
        == 400
    )
    assert ask(server, "/<img src=x onerror=alert(3)>", "GET").status == 404
    assert ask(server, "/endpoints/<img src=x>/invocations", body=body).status == 404
    (*_, answered) = shown(server)
    assert answered["endpoint"] == name
    assert answered["predictions"]["prediction"] == page_models.HOSTILE
    for text in (page(server), page(server, f"/endpoints/{name}/requests")):
        assert "<img src=x" not in text
        assert "<script>" not in text
        assert "<b>bold" not in text


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"insecure": True}, {}),
        ({}, {"host": "rebound.example"}),
        ({}, {"sec_fetch_site": "cross-site"}),
    ],
)
def test_strangers_see_neither_values_nor_ids_nor_paths(serve_here, flights, settings, headers):
    server = serve_here(flights, settings)
    answered = handle(server, flight(carrier="secret"))
    handle(server, flight(distance="secret"))
    ask(server, "/secret", "GET")
    ask(server, "/endpoints/secret/invocations")
    assert [
        (row["status"], row["version"], row["message"]) for row in shown(server, **headers)
    ] == [(404, "", ""), (404, "", ""), (400, "7", ""), (200, "7", "")]
    text = page(server, **headers)
    assert "secret" not in text
    assert answered.headers["X-Prediction-Id"] not in text


def test_a_key_needs_the_scope_read_and_sees_only_its_endpoints(serve_here, model_folders):
    folder = model_folders["mixed"]
    server = serve_here(
        {"flights": {"v": variant(folder)}, "other": {"v": variant(folder)}}, {"api_keys": True}
    )
    both = KeyEntry(name="both", scopes=("infer", "read"))
    keys = {"both": both, "infer": KeyEntry(name="infer", scopes=("infer",))}
    write_keys(
        server.repository.state_dir,
        {**keys, "one": both.model_copy(update={"endpoints": ("flights",)})},
    )
    for key, path in (
        ("both", "/invocations"),
        ("both", "/endpoints/other/invocations"),
        ("wrong", "/invocations"),
    ):
        request = flight(path)
        request.headers = {**request.headers, "authorization": f"Bearer {key}"}
        handle(server, request)

    def status(path, key=""):
        sent = {"authorization": f"Bearer {key}"} if key else {}
        return ask(server, path, "GET", b"", host="anything.example", **sent).status

    assert [status("/requests", key) for key in ("", "infer", "one", "both")] == [
        401,
        403,
        403,
        200,
    ]
    mine = "/endpoints/flights/requests"
    other = "/endpoints/other/requests"
    assert [status(mine, key) for key in ("", "infer", "one", "both")] == [401, 403, 200, 200]
    assert status(other, "one") == 403
    (row,) = shown(server, mine, authorization="Bearer one", host="anything.example")
    assert row["endpoint"] == "flights"
    assert row["values"]["carrier"] == "AA"
    everything = shown(server, authorization="Bearer both")
    assert {row["endpoint"] for row in everything} == {"flights", "other", ""}
    assert [row["status"] for row in everything].count(401) == 3


def test_an_endpoint_that_does_not_exist_has_no_page(serve_here, flights):
    response = ask(serve_here(flights), "/endpoints/none/requests", "GET", b"", **NAMED)
    assert response.status == 404
    assert mentions(json.loads(response.body)["message"], "'none'")


def test_the_wsgi_application_has_the_page(serve_here, flights):
    app = ServerApp(serve_here(flights))
    request = flight()
    assert ask_wsgi(app, "POST", request.path, {**JSON, **NAMED}, request.body)[0] == 200
    status, headers, html = ask_wsgi(
        app, "GET", "/requests?status=200", {**NAMED, "accept": "text/html"}
    )
    assert status == 200
    assert headers["content-type"].partition(";")[0] == "text/html"
    assert b"1400.5" in html


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("two-workers")
    hostile = page_models.hostile_model(root / "hostile")
    folders = {"flights": model_folders["mixed"], "hostile": hostile}
    state_dir = root / "state"
    state_dir.mkdir()
    endpoints = {name: {"v": variant(folder)} for name, folder in folders.items()}
    with gunicorn(state_dir, endpoints, ServerSpec(workers=2)) as server:
        yield server


def wait_until_shared(server, number, endpoint):
    """Wait until the workers have written so many requests to this endpoint to their
    files.
    """

    def is_shared():
        files = (server.state_dir / METRICS).glob("requests_*.json")
        rows = chain.from_iterable(json.loads(file.read_bytes()) for file in files)
        return sum(origin[1] == endpoint for origin, *_ in rows) >= number

    wait_until(is_shared, what="the files of the workers")


def shown_ids(server, path):
    rows = server.get(path).json()["requests"]
    return {row["prediction_id"] for row in rows if row["values"]}


@pytest.mark.long
def test_every_worker_shows_the_requests_of_both_and_they_survive_a_worker(two_workers):
    sent = set()
    for number in range(16):
        answered = two_workers.post(json={"dataframe_records": [{**FLIGHT, "hour": number}]})
        sent.add(answered.headers["X-Prediction-Id"])
    wait_until_shared(two_workers, len(sent), "flights")
    for _ in range(8):  # Each connection may reach another worker.
        assert shown_ids(two_workers, "/requests") >= sent
    for worker in read_workers(two_workers.state_dir):
        os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: ping(two_workers) == 200, 90, "the new workers")
    assert shown_ids(two_workers, "/endpoints/flights/requests") == sent


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
def test_the_page_is_readable_and_opens_a_request(two_workers):
    columns = [page_models.HOSTILE, page_models.QUOTED]
    body = {"dataframe_split": {"columns": columns, "data": [[1.5, 2.0]]}}
    two_workers.post("/endpoints/hostile/invocations", json={})
    two_workers.post("/endpoints/hostile/invocations", json=body)
    wait_until_shared(two_workers, 2, "hostile")
    complaints: list[str] = []
    with chromium() as browser:
        page: Any = browser.new_page()
        for event in ("console", "dialog", "pageerror"):
            page.on(event, lambda reported: complaints.append(str(reported)))
        page.goto(f"{two_workers.url}/endpoints/hostile")
        page.get_by_role("link", name="Requests").click()
        page.wait_for_url("**/endpoints/hostile/requests")
        expect(page.locator("details")).to_have_count(1)
        page.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(page.locator("dl.told")).to_contain_text(page_models.QUOTED)
        expect(page.locator("details")).to_contain_text("onnxserve replay")
        assert accessibility_findings(page) == []
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator(".scroll").evaluate("table => table.scrollWidth <= table.clientWidth")
        page.get_by_role("link", name="4xx").click()
        expect(page.locator("tbody")).to_have_count(1)
        page.get_by_role("link", name="Refresh").click()
        page.wait_for_url("**/requests?status=4xx")
        page.get_by_role("link", name="the whole server").click()
        expect(page.get_by_role("columnheader", name="Endpoint")).to_be_visible()
    assert complaints == []


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
def test_a_business_id_that_is_typed_into_the_form_of_a_table_or_a_tensor_finds_the_request(
    tmp_path, model_folders
):
    folders = {
        "flights": model_folders["mixed"],
        "digits": page_models.digits_model(tmp_path / "digits"),
    }
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    want(
        state_dir,
        1,
        {name: {"v": variant(folder)} for name, folder in folders.items()},
        keys=("ticket",),
    )
    write_spec(state_dir, "flights", ServerSpec())
    with gunicorn(state_dir) as server, chromium() as browser:
        page: Any = browser.new_page()
        for endpoint in folders:
            page.goto(f"{server.url}/endpoints/{endpoint}")
            page.get_by_label("ticket").fill(f"of-{endpoint}")
            page.get_by_role("button", name="Predict").click()
            expect(page.locator("#told-headers")).to_contain_text("Prediction id")
            wait_until_shared(server, 1, endpoint)
            page.goto(f"{server.url}/endpoints/{endpoint}/requests")
            page.get_by_label("Business id").fill(f"of-{endpoint}")
            page.get_by_role("button", name="Find").click()
            expect(page.locator("dl.ids")).to_have_text(re.compile(rf"ticket\s*of-{endpoint}"))
            page.get_by_label("Business id").fill("of-another")
            page.keyboard.press("Enter")
            expect(page.locator(".empty")).to_be_visible()
            assert accessibility_findings(page) == []
