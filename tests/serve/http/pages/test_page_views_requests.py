"""The page Requests shows the last requests, and withholds values from strangers."""

import json
import os
import re
import time
from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.serve.spool.frames import MAGIC
from mlflow_deploy_plugin.serve.spool.writer import MAX_SEGMENT_BYTES
from tests.support import page_models
from tests.support.bodies import v2_tensor
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings, chromium
from tests.support.handling import ask, handle, post
from tests.support.keys import write_keys
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, variant, want, write_spec

FLIGHT = {"carrier": "AA", "distance": 1400.5, "hour": 7, "late": False}
NAMED = {"host": "127.0.0.1:8080"}


@pytest.fixture
def flights(model_folders):
    return {"flights": {"v": variant(model_folders["mixed"], "7")}}


def flight(path="/invocations", rows=1, **changed):
    return post(path, {"dataframe_records": [{**FLIGHT, **changed}] * rows})


def get(server, path="/requests", query="", **headers):
    fields = {name.replace("_", "-"): value for name, value in {**NAMED, **headers}.items()}
    return handle(server, RawRequest("GET", path, fields, b"", query=query))


def shown(server, path="/requests", query="", **headers):
    """Return the listed requests, the last one first."""
    response = get(server, path, query, **{"accept": "*/*", **headers})
    assert response.status == 200, response.body
    return json.loads(response.body)["requests"]


def page(server, path="/requests", query="", **headers):
    response = get(server, path, query, accept="text/html", **headers)
    assert response.status == 200
    assert response.content_type.partition(";")[0] == "text/html"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    return response.body.decode()


def test_prediction_is_shown_with_first_row(serve_here, flights):
    server = serve_here(flights)
    before = time.time()
    answered = handle(server, flight(rows=3))
    (row,) = shown(server)
    assert row["prediction_id"] == answered.headers["X-Prediction-Id"]
    expected = {
        "status": 200,
        "endpoint": "flights",
        "variant": "v",
        "version": "7",
        "protocol": "invocations",
        "rows": 3,
    }
    assert expected.items() <= row.items()
    assert row["values"] == {"carrier": "AA", "distance": "1400.5", "hour": "7", "late": "false"}
    assert row["predictions"]["prediction"] == "yes"
    probabilities = row["predictions"]["output.probabilities"].split(", ")
    assert [f"{float(number):.6g}" for number in probabilities] == probabilities
    assert 0 < row["milliseconds"] < (time.time() - before) * 1000
    for text in (page(server), page(server, "/endpoints/flights/requests")):
        assert mentions(
            text, "200", "1400.5", "invocations", f"onnxserve replay {row['prediction_id']}"
        )


def found(server, text, path="/requests", **headers):
    return shown(server, path, urlencode({"find": text}), **headers)


def test_request_is_found_by_business_id_and_time(serve_here, flights):
    server = serve_here(flights, keys=["ticket"])
    handle(server, flight(ticket="006"))
    dated = flight(rows=2, ticket="007")
    dated.headers["x-event-time"] = "2013-07-04T12:30:00Z"
    id_ = handle(server, dated).headers["X-Prediction-Id"]
    for _ in range(2 * 50):  # The page lists the last 100 requests.
        handle(server, flight(distance="far"))
    for text in ("007", "2013-07-04", "2013-07-04 12:30", "2013-07-04T12:30:00Z", id_):
        (row,) = found(server, text)
        assert (row["prediction_id"], row["keys"]) == (id_, {"ticket": "007"})
        assert row["event_time"] == "2013-07-04T12:30:00.000+00:00"
        assert row["values"]["carrier"] == "AA"
    for text in ("7", "2013", "2013-07-04 13", "008"):
        assert found(server, text) == [], text
    (other,) = found(server, "006", "/endpoints/flights/requests")
    assert (other["keys"], other["event_time"]) == ({"ticket": "006"}, "")
    html = page(server, query="find=007")
    assert mentions(html, 'value="007"', "2013-07-04", "onnxserve log query NAME")
    assert 'href="/requests?status=4xx&amp;find=007"' in html


def test_masked_business_id_is_found_by_hash_alone(serve_here, flights):
    server = serve_here(flights, keys=["ticket"], mask=["ticket"])
    handle(server, flight(ticket="secret"))
    (row,) = shown(server)
    hashed = row["keys"]["ticket"]
    assert "secret" not in page(server)
    assert len(found(server, hashed)) == 1
    assert found(server, "secret") == []
    # The query of a stranger is ignored.
    assert [match["keys"] for match in found(server, hashed, host="rebound.example")] == [{}]
    assert "<form" not in page(server, host="rebound.example")


def test_planned_request_is_shown_alike(serve_here, flights):
    server = serve_here(flights)
    handle(server, flight())
    assert PlanTable(server).answer(flight()) is not None
    planned, general = (
        {**row, "time": "", "milliseconds": 0, "prediction_id": ""} for row in shown(server)
    )
    assert planned == general


def test_requests_of_every_kind_are_shown(serve_here, flights):
    server = serve_here(flights)
    assert handle(server, flight()).status == 200
    assert ask(server, "/explain", body=b"{}").status == 400
    assert ask(server, "/endpoints/none/invocations").status == 404
    assert ask(server, "/invocations", "GET").status == 405
    rows = shown(server)
    assert [(row["protocol"], row["status"], row["endpoint"], row["rows"]) for row in rows] == [
        ("GET /invocations", 405, "", None),
        ("invocations", 404, "", None),
        ("explain", 400, "flights", None),
        ("invocations", 200, "flights", 1),
    ]
    of_flights = shown(server, "/endpoints/flights/requests")
    assert [row["protocol"] for row in of_flights] == ["explain", "invocations"]
    assert rows[1]["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert mentions(rows[1]["message"], "'none'", "'flights'")


def test_failure_is_shown_with_message(serve_here, flights):
    server = serve_here(flights)
    assert handle(server, flight(distance="far")).status == 400
    (row,) = shown(server)
    assert (row["error_code"], row["values"], row["predictions"]) == ("BAD_REQUEST", {}, {})
    assert mentions(row["message"], "'distance'", "'far'")
    assert "far" in page(server)


@pytest.mark.parametrize(
    "excluded", [{"drop": ["carrier", "output.probabilities"]}, {"mask": ["carrier"]}]
)
def test_masked_or_dropped_columns_are_hidden(serve_here, flights, excluded):
    server = serve_here(flights, **excluded)
    handle(server, flight(carrier="secret-1"))
    handle(server, flight(distance="secret-2"))
    failed, answered = shown(server)
    if "mask" in excluded:
        mask = ColumnMask(server.repository.state_dir / MASK_KEY)
        masked = mask.hash_values({"carrier": "secret-1"}, frozenset(["carrier"]))
        assert answered["values"]["carrier"] == masked["carrier"]
    else:
        assert "carrier" not in answered["values"]
        assert list(answered["predictions"]) == ["prediction"]
    assert answered["values"]["distance"] == "1400.5"
    assert failed["error_code"] == "BAD_REQUEST"
    assert failed["message"] == ""
    assert "secret" not in page(server)
    server.recent.write()
    folders = (server.repository.state_dir, server.metrics.folder)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert any(file.name.startswith("requests_") for file in files)
    assert not any(b"secret" in file.read_bytes() for file in files)


def test_unsampled_requests_are_shown_without_values(serve_here, flights):
    server = serve_here(flights, fraction=0.0)
    handle(server, flight())
    handle(server, flight(distance="far"))
    failed, answered = shown(server)
    assert (answered["status"], answered["values"], answered["predictions"]) == (200, {}, {})
    assert (failed["status"], failed["message"]) == (400, "")
    assert "onnxserve replay" not in page(server)


def test_prediction_without_rows_hides_no_others(serve_here, tmp_path):
    server = serve_here({"digits": {"v": variant(page_models.digits_model(tmp_path / "digits"))}})
    for rows in (0, 1):
        entry = v2_tensor("image", "FP32", [0.5] * 64 * rows, [rows, 1, 8, 8])
        assert ask(server, "/v2/models/digits/infer", body={"inputs": [entry]}).status == 200
    filled, empty = shown(server)
    assert list(filled["values"]) == ["image"]
    assert empty["values"] == {}
    assert empty["rows"] is None


def test_damaged_spool_hides_only_values(serve_here, flights):
    server = serve_here(flights)
    handle(server, flight())
    (segment,) = (server.repository.state_dir / SPOOL).glob("*.seg")
    assert shown(server)[0]["values"]["carrier"] == "AA"
    content = segment.read_bytes()
    for damaged in (b"", os.urandom(100), content[:-1], content[5:], MAGIC * 1000):
        segment.write_bytes(damaged)
        assert [(row["status"], row["values"]) for row in shown(server)] == [(200, {})]


def test_page_reads_bounded_part_of_spool(serve_here, flights):
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


def test_requests_are_filtered_by_status(serve_here, flights):
    server = serve_here(flights)
    handle(server, flight(distance="far"))
    for _ in range(150):
        handle(server, flight())
    for status, seen in {"4xx": {400}, "400": {400}, "2xx": {200}, "5xx": set()}.items():
        assert {row["status"] for row in shown(server, query=f"status={status}")} == seen
    assert "<script>" not in page(server, query="status=%3Cscript%3E")


def test_hostile_names_values_and_paths_stay_text(serve_here, tmp_path):
    # A spec rejects such a name; wanted.json does not.
    name = page_models.HOSTILE.replace("/", "-")
    hostile = {"v": variant(page_models.hostile_model(tmp_path / "hostile"))}
    server = serve_here({"e": hostile, name: hostile})
    columns = [page_models.HOSTILE, page_models.QUOTED]
    path = f"/endpoints/{name}/invocations"
    for value, status in ((1.5, 200), ("<img src=x>", 400)):
        split = {"columns": columns, "data": [[value, 2.0]]}
        assert ask(server, path, body={"dataframe_split": split}).status == status
    assert ask(server, "/<img src=x onerror=alert(3)>", "GET").status == 404
    assert ask(server, "/endpoints/<img src=x>/invocations").status == 404
    answered = shown(server)[-1]
    assert answered["endpoint"] == name
    assert answered["predictions"]["prediction"] == page_models.HOSTILE
    for text in (page(server), page(server, f"/endpoints/{name}/requests")):
        assert not any(code in text for code in ("<img src=x", "<script>", "<b>bold"))


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"insecure": True}, {}),
        ({}, {"host": "rebound.example"}),
        ({}, {"sec_fetch_site": "cross-site"}),
    ],
)
def test_strangers_see_no_values_or_paths(serve_here, flights, settings, headers):
    server = serve_here(flights, settings)
    answered = handle(server, flight(carrier="secret"))
    handle(server, flight(distance="secret"))
    ask(server, "/secret", "GET")
    ask(server, "/endpoints/secret/invocations")
    rows = [(row["status"], row["version"], row["message"]) for row in shown(server, **headers)]
    assert rows == [(404, "", ""), (404, "", ""), (400, "7", ""), (200, "7", "")]
    text = page(server, **headers)
    assert "secret" not in text
    assert answered.headers["X-Prediction-Id"] not in text


def test_key_sees_only_its_endpoints(serve_here, model_folders):
    endpoints = {name: {"v": variant(model_folders["mixed"])} for name in ("flights", "other")}
    server = serve_here(endpoints, {"api_keys": True})
    both = KeyEntry(name="both", scopes=("infer", "read"))
    one = both.model_copy(update={"endpoints": ("flights",)})
    write_keys(server.repository.state_dir, {"both": both, "one": one})
    for path in ("/invocations", "/endpoints/other/invocations"):
        request = flight(path)
        request.headers["authorization"] = "Bearer both"
        handle(server, request)
    sent = {"authorization": "Bearer one", "host": "anything.example"}
    assert get(server, **sent).status == 403
    (row,) = shown(server, "/endpoints/flights/requests", **sent)
    assert (row["endpoint"], row["values"]["carrier"]) == ("flights", "AA")
    everything = shown(server, authorization="Bearer both")
    assert {row["endpoint"] for row in everything} == {"flights", "other", ""}


def test_unknown_endpoint_has_no_page(serve_here, flights):
    response = get(serve_here(flights), "/endpoints/none/requests", accept="*/*")
    assert response.status == 404
    assert mentions(json.loads(response.body)["message"], "'none'")


@pytest.fixture
def browser_page():
    """Yield a tab, whose console must remain empty."""
    complaints = []
    with chromium() as browser:
        page = browser.new_page()
        for event in ("console", "dialog", "pageerror"):
            page.on(event, lambda reported: complaints.append(str(reported)))
        yield page
    assert complaints == []


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
def test_page_opens_request_and_fits_phone(pages_server, browser_page):
    columns = [page_models.HOSTILE, page_models.QUOTED]
    body = {"dataframe_split": {"columns": columns, "data": [[1.5, 2.0]]}}
    pages_server.post("/endpoints/hostile/invocations", json={})
    pages_server.post("/endpoints/hostile/invocations", json=body)
    page = browser_page
    page.goto(f"{pages_server.url}/endpoints/hostile/requests")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("dl.told").first).to_contain_text(page_models.QUOTED)
    assert accessibility_findings(page) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".scroll").evaluate("table => table.scrollWidth <= table.clientWidth")
    page.get_by_role("link", name="4xx").click()
    page.get_by_role("link", name="Refresh").click()
    page.wait_for_url("**/requests?status=4xx")


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
def test_typed_business_id_finds_request(tmp_path, model_folders, browser_page):
    want(tmp_path, 1, {"flights": {"v": variant(model_folders["mixed"])}}, keys=("ticket",))
    write_spec(tmp_path, "flights", ServerSpec())
    page = browser_page
    with gunicorn(tmp_path) as server:
        page.goto(f"{server.url}/endpoints/flights")
        page.get_by_label("ticket").fill("007")
        page.get_by_role("button", name="Predict").click()
        page.locator("#told-headers").wait_for()
        page.goto(f"{server.url}/endpoints/flights/requests")
        page.get_by_label("Business id").fill("007")
        page.get_by_role("button", name="Find").click()
        expect(page.locator("dl.ids")).to_have_text(re.compile(r"ticket\s*007"))
        page.get_by_label("Business id").fill("008")
        page.keyboard.press("Enter")
        expect(page.locator(".empty")).to_be_visible()
