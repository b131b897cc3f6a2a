"""The window on a real X server: the form, files, the chart, and the local server."""

import socket
import threading
import tkinter as tk
from collections.abc import Sequence
from pathlib import Path
from tkinter import ttk

import openpyxl
import pytest
import requests
from PIL import ImageGrab

from mlflow_deploy_plugin.wrap.desktop.window import ProgramWindow
from tests.support.models import columns, graph_tensor, write_model
from tests.support.refusals import mentions
from tests.support.waiting import free_port, wait_until
from tests.wrap.desktop.conftest import FACTS

ROWS = "carrier,distance,hour,late,id\nAA,10.5,1,true,x\nUA,-200000,23,false,=1+1\n"


def finish(window: ProgramWindow) -> None:
    """Handle the events of the window until its work has ended."""

    def is_idle() -> bool:
        window.root.update()
        return not window.is_busy

    wait_until(is_idle, 60, "the work of the window")


def opened(window: ProgramWindow, path: Path, text: str = ROWS) -> None:
    path.write_text(text)
    window.open_file(str(path))
    finish(window)


def chart_texts(window: ProgramWindow) -> set[str]:
    items = [
        item for item in window.chart.find_withtag("all") if str(window.chart.type(item)) == "text"
    ]
    return {window.chart.itemcget(item, "text") for item in items}


def test_the_form_has_the_example_and_predicts_its_row(window: ProgramWindow) -> None:
    assert {name: field.get() for name, field in window.fields.items()} == {
        "carrier": "AA",
        "distance": "1400.5",
        "hour": "17",
        "late": "true",
    }
    window.fields["distance"].set("-200000")
    window.fields["late"].set("false")
    window.predict()
    finish(window)

    assert window.predictions["prediction"] == ["no"]
    assert list(window.predictions) == ["prediction", "probability of no", "probability of yes"]
    assert window.inputs == {
        "carrier": ["AA"],
        "distance": [-200000.0],
        "hour": [17],
        "late": [False],
    }
    (row,) = window.table.get_children()
    assert window.table.item(row)["values"][0] == "no"
    assert {"probability of no", "probability of yes"} <= chart_texts(window)


def test_enter_in_a_field_predicts(window: ProgramWindow) -> None:
    window.root.update()
    field: tk.Misc | None = window.root
    while field is not None and not isinstance(
        field,
        ttk.Entry,
    ):  # The Tab key leads to the first field.
        field = field.tk_focusNext()
    assert field is not None
    field.focus_force()
    field.event_generate("<Return>")
    finish(window)
    assert window.predictions["prediction"] == ["yes"]


def test_the_wheel_of_the_mouse_does_not_change_a_list(window: ProgramWindow) -> None:
    window.root.update()
    field: tk.Misc | None = window.root
    while field is not None and not isinstance(field, ttk.Combobox):
        field = field.tk_focusNext()
    assert field is not None
    for button in ("<Button-4>", "<Button-5>"):
        field.event_generate(button)
        assert window.fields["late"].get() == "true"


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("distance", "far", ["distance", "far"]),
        ("hour", "2.5", ["hour", "2.5"]),
        ("late", "", ["late"]),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    name: str,
    text: str,
    names: list[str],
    window: ProgramWindow,
) -> None:
    window.fields[name].set(text)
    window.predict()
    finish(window)
    assert mentions(window.status.get(), *names), window.status.get()
    assert "row" not in window.status.get()
    assert window.predictions == {}


def test_a_file_is_predicted_shown_and_saved(window: ProgramWindow, tmp_path: Path) -> None:
    opened(window, tmp_path / "rows.csv")
    assert window.predictions["prediction"] == ["yes", "no"]
    assert window.inputs["id"] == ["x", "=1+1"]
    assert len(window.table.get_children()) == 2
    assert mentions(window.status.get(), "2")

    window.save(str(tmp_path / "saved.xlsx"))
    finish(window)
    assert mentions(window.status.get(), "saved.xlsx")
    cells = [
        [cell.value for cell in row]
        for row in openpyxl.load_workbook(tmp_path / "saved.xlsx").active.rows
    ]
    assert cells[0] == [*window.inputs, *window.predictions]
    assert cells[2][:6] == [
        "UA",
        -200000,
        23,
        False,
        "'=1+1",
        "no",
    ]

    window.open_file(str(tmp_path / "saved.xlsx"))
    finish(window)
    assert window.predictions["prediction"] == ["yes", "no"]


def test_a_cell_that_does_not_fit_is_named_with_its_row(
    window: ProgramWindow,
    tmp_path: Path,
) -> None:
    opened(window, tmp_path / "rows.csv")
    opened(window, tmp_path / "bad.csv", ROWS + "\nUA,far,1,true,y\n")
    assert mentions(window.status.get(), "distance", "far", "row 4"), window.status.get()
    assert window.predictions["prediction"] == ["yes", "no"]  # The last result remains.


def test_the_server_answers_and_ends_with_the_window(
    window: ProgramWindow,
    display: str,
    mixed: Path,
) -> None:
    port = free_port()
    window.server_fields["port"].set(str(port))
    window.server_fields["API key"].set("sesame")
    window.toggle_server()
    finish(window)
    url = f"http://127.0.0.1:{port}"
    assert window.url.get() == url
    row = {"carrier": "AA", "distance": 1400.5, "hour": 17, "late": True}
    body = {"dataframe_records": [row]}
    key = {"Authorization": "Bearer sesame"}
    assert requests.post(f"{url}/invocations", json=body, timeout=30).status_code == 401
    assert requests.post(f"{url}/invocations", json=body, headers=key, timeout=30).json() == {
        "predictions": ["yes"],
    }

    window.toggle_server()
    finish(window)
    assert window.url.get() == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_closing_window_saves_its_file_and_stops_a_server_that_starts(
    display: str,
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    before = threading.enumerate()  # Other tests may have left threads in this process.
    saving = ProgramWindow(mixed, FACTS)
    serving = ProgramWindow(mixed, FACTS)
    port = free_port()
    opened(saving, tmp_path / "rows.csv", ROWS + "AA,1,2,true,y\n" * 10_000)
    saving.save(str(tmp_path / "saved.csv"))
    saving.close()
    assert len((tmp_path / "saved.csv").read_text().splitlines()) == 10_003

    serving.server_fields["port"].set(str(port))
    serving.toggle_server()
    serving.close()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert not any(thread.name.startswith("ThreadPool") for thread in started)


@pytest.mark.parametrize(
    ("numbers", "bars"),
    [
        ([1e20] * 5, {"Rows by prediction", "5"}),
        (range(24), {"≥ 0", "2"}),
    ],
)
def test_numbers_are_counted_by_value_or_by_interval(
    numbers: Sequence[float],
    bars: set[str],
    display: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    section = {
        "inputs": [graph_tensor("x", "float32", -1, 1, columns=["x"])],
        "outputs": [graph_tensor("y", "float32", -1, 1, role="values")],
        "prediction": ["y"],
    }
    window = ProgramWindow(
        write_model(tmp_path / "m", signature=columns(x="float"), section=section),
        FACTS,
    )
    opened(window, tmp_path / "rows.csv", "x\n" + "\n".join(map(str, numbers)))
    assert bars <= chart_texts(window), window.status.get()
    window.close()


@pytest.mark.parametrize("port", ["used", "eighty", "99999999"])
def test_a_port_that_cannot_be_used_is_named(port: str, window: ProgramWindow) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = str(other.getsockname()[1]) if port == "used" else port
        window.server_fields["port"].set(text)
        window.toggle_server()
        finish(window)
    assert mentions(window.status.get(), "port", text), window.status.get()
    assert window.url.get() == ""


def test_a_model_of_tensors_has_no_form(tensor_window: ProgramWindow) -> None:
    assert tensor_window.fields == {}
    tensor_window.server_fields["port"].set("0")
    tensor_window.toggle_server()
    finish(tensor_window)
    body = {"inputs": [[[1, 2], [3, 4]]]}
    answer = requests.post(f"{tensor_window.url.get()}/invocations", json=body, timeout=30).json()
    assert answer["predictions"]["total"] == [10.0]


def test_the_window_shows_the_provenance_and_fits_a_small_screen(
    window: ProgramWindow,
    display: str,
    tmp_path: Path,
) -> None:
    opened(window, tmp_path / "rows.csv")
    assert mentions(window.about.get("1.0", "end"), "git commit", "6d1f0ab")
    assert (
        window.root.winfo_width(),
        window.root.winfo_height(),
    ) <= (1280, 800)
    picture = ImageGrab.grab(xdisplay=display)
    assert len(picture.getcolors(2**24) or ()) > 50  # An empty screen has a single colour.
