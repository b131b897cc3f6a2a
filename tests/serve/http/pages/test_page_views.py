"""The pages in a real headless Chromium, with the keyboard, on a phone, and with
hostile models.
"""

import csv
import io
from pathlib import Path
from urllib.parse import urlparse

import pytest
from PIL import Image
from playwright.sync_api import expect

from mlflow_deploy_plugin.core.column_names import TRIED_ID
from tests.support.browser import NEEDS_CHROMIUM, accessibility_findings, chromium
from tests.support.page_models import HOSTILE, QUOTED
from tests.support.refusals import mentions

pytestmark = NEEDS_CHROMIUM
PHONE = {"width": 360, "height": 740}
PASTE = """(field, text) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text", text);
    field.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, pages_server):
    """Yield a tab. Afterwards, check that its console is empty and that it has sent
    requests only to the server.
    """
    context = browser.new_context(base_url=pages_server.url, accept_downloads=True)
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    complaints = []
    hosts = set()

    def log(message):
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def dismiss(dialog):
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    tab.on("console", log)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", dismiss)
    tab.on("request", lambda request: hosts.add(urlparse(request.url).netloc))
    yield tab
    context.close()
    # Chromium logs a response with a 4xx status.
    assert [text for text in complaints if "status of 4" not in text] == []
    assert hosts - {"", urlparse(pages_server.url).netloc} == set()


def press_predict(page):
    page.get_by_role("button", name="Predict").click()


def single_answer(page):
    """Wait for the answer to one row, and return it."""
    value = page.locator(".single .value")
    value.wait_for()
    return str(value.inner_text())


@pytest.mark.long
def test_form_shows_example_and_probabilities(page):
    page.goto("/")
    assert page.get_by_label("carrier").input_value() == "AA"
    assert page.get_by_label("distance").input_value() == "1400.5"
    assert "Production" in page.locator(".facts").inner_text()
    press_predict(page)
    assert single_answer(page) == "yes"
    assert [line.split("\n")[0] for line in page.locator(".bar-line").all_inner_texts()] == [
        "yes",
        "no",
    ]
    text = page.locator("#told-headers").inner_text()
    assert "m 1" in text
    assert "ms" in text
    assert "Prediction id" in text


@pytest.mark.long
def test_text_has_input_and_category_list(page):
    page.goto("/endpoints/flights")
    assert page.get_by_label("carrier").evaluate("field => field.tagName") == "INPUT"
    words = page.locator("#by-form .meaning").all_inner_texts()
    assert words == ["text", "number, may be empty", "whole number", "true or false"]
    page.goto("/endpoints/airlines")
    carrier = page.get_by_label("carrier")
    assert carrier.locator("option").all_inner_texts() == ["AA", "UA", "W&N"]
    carrier.select_option("W&N")
    with page.expect_request("**/predict/batch") as request_info:
        press_predict(page)
    assert request_info.value.headers["x-request-id"].startswith(TRIED_ID)
    sent = request_info.value.post_data_json["dataframe_split"]
    assert dict(zip(sent["columns"], sent["data"][0], strict=True))["carrier"] == "W&N"


@pytest.mark.long
def test_nan_probability_has_no_number(page):
    page.goto("/endpoints/flights")
    page.get_by_label("distance").fill("")
    press_predict(page)
    single_answer(page)
    assert page.locator(".bar-line .percent").all_inner_texts() == ["no number", "no number"]


@pytest.mark.long
def test_keyboard_alone_predicts(page):
    page.goto("/endpoints/flights")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "field-1":
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("-9000")
    page.keyboard.press("Enter")
    assert single_answer(page) == "no"


@pytest.mark.long
def test_waiting_shows_status_and_keeps_focus(page):
    held = []

    def hold(route):
        held.append(route)

    page.route("**/predict/batch", hold)
    page.goto("/endpoints/flights")
    button = page.get_by_role("button", name="Predict")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Waiting for the response").wait_for()
    page.keyboard.press("Enter")
    held[0].continue_()
    single_answer(page)
    expect(button).to_be_focused()
    assert len(held) == 1


@pytest.mark.long
def test_error_is_shown_at_its_field(page):
    page.goto("/endpoints/flights")
    page.get_by_label("hour").fill("7.5")
    press_predict(page)
    error = page.locator("#field-2-error")
    error.wait_for()
    assert mentions(error.inner_text(), "'hour' (long)", "row 0", "7.5")
    assert page.get_by_role("alert").inner_text() == error.inner_text()
    assert page.locator("[aria-invalid=true]").count() == 1
    assert page.evaluate("document.activeElement.id") == "field-2"
    page.get_by_label("hour").fill("soon")
    press_predict(page)
    expect(page.locator(".error:visible")).to_have_text(["a whole number is expected"])
    page.get_by_label("hour").fill("7")
    press_predict(page)
    single_answer(page)
    assert page.locator("[aria-invalid=true]").count() == 0


@pytest.mark.long
def test_uploaded_csv_is_answered_and_downloaded(page, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("carrier,distance,hour,late\nAA,100,7,true\nUA,-9000,8,false\nUA,10,9,1\n")
    page.goto("/endpoints/flights")
    page.get_by_label("Paste or upload").check()
    page.locator("#file").set_input_files(file)
    page.get_by_text("rows.csv").wait_for()
    press_predict(page)
    page.locator("#answer tbody tr").nth(2).wait_for()
    assert [line[1] for line in table(page)] == ["yes", "no", "yes"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    header, *lines = csv.reader(io.StringIO(Path(waiting.value.path()).read_text()))
    assert header == ["prediction", "probability no", "probability yes"]
    assert [line[0] for line in lines] == ["yes", "no", "yes"]
    assert all(float(line[1]) + float(line[2]) == pytest.approx(1) for line in lines)


@pytest.mark.long
@pytest.mark.parametrize(
    "body",
    [
        '[{"carrier": "AA", "distance": 1, "hour": 1, "late": true}]',
        '{"instances": [["AA", 1, 1, true]]}',
    ],
)
def test_pasted_json_is_answered(page, body):
    page.goto("/endpoints/flights")
    page.get_by_label("Paste or upload").check()
    page.locator("#pasted").fill(body)
    page.locator("#pasted").press("Control+Enter")
    assert single_answer(page) == "yes"


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "distance"),
    [
        (
            '{"carrier": "W, N", "distance": 12345678901234567890, "hour": 9}',
            "12345678901234567890",
        ),
        ('[["W, N", -0.5, 9, true]]', "-0.5"),
        ('hour,carrier,distance\r\n9,"W, N",', ""),
        ("W, N\t7.0\t9\tfalse", "7.0"),
    ],
)
def test_pasted_row_fills_the_form(page, text, distance):
    page.goto("/endpoints/flights")
    page.get_by_label("hour").evaluate(PASTE, text)
    assert page.get_by_label("carrier").input_value() == "W, N"
    assert page.get_by_label("distance").input_value() == distance
    assert page.get_by_label("hour").input_value() == "9"
    expect(page.locator("#filled")).to_contain_text("of 4 fields")
    for other in ("1, 2, 3", "W, four, commas, true", f"[0,0,0,{'0' * 2**20}]", '{"__proto__": 7}'):
        page.get_by_label("hour").evaluate(PASTE, other)
    assert page.get_by_label("hour").input_value() == "9"


@pytest.mark.long
def test_impossible_pasted_value_is_marked(page):
    page.goto("/endpoints/airlines")
    row = '{"carrier": "__proto__", "hour": 4, "late": "TRUE"}'
    page.get_by_label("hour").evaluate(PASTE, row)
    expect(page.locator("#filled")).to_contain_text("2 of 4 fields")
    expect(page.get_by_label("carrier")).to_have_attribute("aria-invalid", "true")
    assert page.get_by_label("late").input_value() == "true"


@pytest.mark.long
def test_thirty_fields_fit_on_a_screen(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto("/endpoints/wide")
    assert page.locator("#by-form .field").count() == 30
    assert page.locator("#filled").inner_text().count("number, may be empty") == 1
    assert page.locator(".meaning:not(.unseen)").count() == 1  # of the pasted text
    assert page.locator("#by-form").bounding_box()["height"] < 800
    page.goto("/endpoints/wide/docs")
    triton = page.locator(".snippet code").nth(2).inner_text()
    assert len(triton.splitlines()) < 20


@pytest.mark.long
def test_picture_is_resized_and_scaled(page, tmp_path):
    picture = tmp_path / "half.png"
    Image.frombytes("L", (20, 20), b"\xff" * 200 + b"\x00" * 200).save(picture)
    page.goto("/endpoints/digits")
    assert "0–255 is scaled to 0–1" in page.locator(".picture").inner_text()
    page.locator("#field-0-picture").set_input_files(picture)
    page.get_by_text("half.png is sent instead of the numbers").wait_for()
    with page.expect_request("**/predict/batch") as request_info:
        press_predict(page)
    (((*rows,),),) = request_info.value.post_data_json["inputs"]
    assert rows[0] == [1] * 8
    assert rows[7] == [0] * 8
    assert single_answer(page) == "0"
    page.get_by_role("button", name="Use the numbers instead").click()
    assert page.locator("#field-0").is_visible()


@pytest.mark.long
def test_unreadable_image_is_an_error(page, tmp_path):
    file = tmp_path / "none.png"
    file.write_text("no picture")
    page.goto("/endpoints/digits")
    page.locator("#field-0-picture").set_input_files(file)
    page.get_by_text("none.png is not an image").wait_for()


@pytest.mark.long
def test_html_in_names_and_answers_stays_text(page):
    page.goto("/endpoints/hostile")
    assert page.locator("label[for=field-0]").inner_text() == HOSTILE
    assert page.locator("label[for=field-1]").inner_text() == QUOTED
    press_predict(page)
    assert single_answer(page) == HOSTILE
    page.get_by_label("Paste or upload").check()
    page.locator("#pasted").fill('[["<u>wrong</u>", 1]]')
    press_predict(page)
    expect(page.get_by_role("alert")).to_contain_text("<u>wrong</u>")
    page.goto("/endpoints/hostile/docs")
    assert HOSTILE in page.locator("table").first.inner_text()
    assert page.locator("img[src=x], u, table b").count() == 0


@pytest.mark.long
def test_tensor_is_sent_as_nested_lists(page):
    page.goto("/endpoints/tensor")
    page.locator("#field-0").fill("[[[1, 2], [3, 4]]]")
    press_predict(page)
    page.locator("#answer tbody tr").wait_for()
    assert table(page) == [["[[2,4],[6,8]]", "10"]]  # A single row is not numbered.
    page.locator("#field-0").fill("[[[1, 2], [3, 4, 5]]]")
    press_predict(page)
    page.locator("#field-0-error").wait_for()


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"predictions": "<i>text</i>"}', "<i>text</i>"),
        ('{"predictions": [[0.123456789]]}', "0.1234568"),
        ('{"predictions": [{"a": 1, "b": "<i>x</i>"}, {"a": 2, "b": null}]}', "<i>x</i>"),
        ('{"predictions": []}', "Row"),
        ('"<i>bare</i>"', "<i>bare</i>"),
        ('data: {"delta": "<i>a</i>"}\n\ndata: {"delta": "b"}\n\ndata: [DONE]\n\n', "<i>a</i>"),
        (
            'data: "a"\n\ndata: {"error": {"code": 503, "message": "gone"}}\n\ndata: [DONE]\n\n',
            "gone",
        ),
        ("no JSON", "The server answered 200"),
    ],
)
def test_any_python_answer_is_shown_as_text(page, body, shown):
    media = "text/event-stream" if body.startswith("data: ") else "application/json"
    page.route(
        "**/predict/batch", lambda route: route.fulfill(status=200, body=body, content_type=media)
    )
    page.goto("/endpoints/flights")
    press_predict(page)
    page.locator("#told-headers").wait_for()
    assert shown in page.locator("section", has=page.locator("#answer")).inner_text()
    assert page.locator("#answer i").count() == 0


@pytest.mark.long
def test_parts_are_shown_as_they_arrive(page):
    page.add_init_script(
        """const { readable, writable } = new TransformStream();
        window.fetch = async () => new Response(readable, \
{ headers: { "Content-Type": "text/event-stream" } });
        const bytes = (code) => code.charCodeAt(0);
        window.send = (text) => void (window.writer ??= writable.getWriter())\
.write(Uint8Array.from(text, bytes));"""
    )

    def send(data):
        page.evaluate("text => send(text)", data.decode("latin-1"))

    event = 'data: {"delta": "né"}\n\n'.encode()
    page.goto("/endpoints/flights")
    press_predict(page)
    send(b'data: {"delta": "one"}\n\n' + event[:19])  # the first of two bytes
    expect(page.locator("#answer")).to_contain_text("one")
    assert page.locator("#told-headers").is_hidden()
    send(event[19:])
    expect(page.locator("#answer tbody")).to_have_text("0one1né")
    send(b"data: [DONE]\n\n")
    page.evaluate("window.writer.close()")
    page.locator("#told-headers").wait_for()
    assert table(page) == [["0", "one"], ["1", "né"]]


@pytest.mark.long
def test_arrow_keys_select_endpoint_without_leaving(page):
    page.goto("/endpoints/flights")
    page.get_by_label("Endpoint").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    selection = page.get_by_label("Endpoint").input_value()
    assert selection == "hostile"
    assert urlparse(page.url).path == "/endpoints/flights"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/endpoints/hostile")


@pytest.mark.long
def test_code_of_docs_is_copied(page, pages_server):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/docs")
    page.locator(".copy").first.click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith(
        f"curl {pages_server.url}/endpoints/flights/"
    )
    page.get_by_text("/v2/models/flights/infer", exact=True).click()
    assert page.get_by_text("Body: application/octet-stream").first.is_visible()


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/endpoints/nope",
        "/endpoints/digits",
        "/endpoints/hostile",
        "/endpoints/hostile/docs",
    ],
)
def test_page_is_accessible_and_fits_phone(page, path):
    page.goto(path)
    button = page.get_by_role("button", name="Predict")
    for is_answered in (False, True)[: 1 + button.count()]:
        if is_answered:
            button.click()
            page.locator("#told-headers").wait_for()
        assert accessibility_findings(page) == []
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.long
@pytest.mark.parametrize("size", [PHONE, {"width": 1280, "height": 300}])
def test_answer_is_scrolled_into_view(page, size):
    page.set_viewport_size(size)
    page.goto("/endpoints/flights")
    page.get_by_label("late").select_option("true")
    press_predict(page)
    expect(page.locator(".single .value")).to_be_in_viewport()


def table(page):
    """Return the texts of the answer's cells, row by row."""
    rows = page.locator("#answer tbody tr").all()
    return [[cell.inner_text() for cell in row.locator("> td").all()] for row in rows]
