"""The window of a desktop program: a form, a table and a chart of predictions, a local server, and the provenance."""

import logging
import queue
import threading
import tkinter as tk
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from tkinter import filedialog, ttk
from typing import TypeVar

import numpy as np

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.desktop.tables import Columns, csv_text, predict_csv, predict_file, save_columns
from mlflow_deploy_plugin.embed import local_server
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.messages import without_row_number
from mlflow_deploy_plugin.protocols import JSON
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, OnnxModel
from mlflow_deploy_plugin.runtime.log_columns import as_text

T = TypeVar("T")
_WORDS = {"string": "text", "boolean": "yes or no", "integer": "whole number", "long": "whole number"}
_FILES = [("CSV or Excel", "*.csv *.xlsx"), ("All files", "*")]
_SERVER_FIELDS = {
    "host": ("127.0.0.1", "127.0.0.1: only this machine; 0.0.0.0: also other machines"),
    "port": ("8080", "whole number"),
    "API key": ("", "optional; clients send it as Authorization: Bearer KEY"),
}
_SHOWN_ROWS, _MOST_BARS, _BINS, _POLL_MS = 1000, 12, 24, 30
_BLUE, _RED, _PAPER, _INK, _GREY, _WHITE = "#2563a8", "#b3261e", "#f5f6f8", "#1f2933", "#5f6b78", "#ffffff"

logger = logging.getLogger(__name__)


class Window:
    """The window of the version in an MLmodel folder. Work runs in a thread, so that the window stays responsive.

    Attributes:
        fields / server_fields: the texts of the two forms by name. A model of tensors has no form.
        inputs / predictions: the columns of the last result.
        status: the last message.
        url: the address of the running server; empty if the server is stopped.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.model, self.inputs, self.predictions = OnnxModel.load(folder), Columns(), Columns()
        self.is_busy, self._folder, self._facts, self._server = False, folder, facts, ExitStack()
        self._outcomes = queue.SimpleQueue[Callable[[], object]]()
        self.root = root = tk.Tk(className="onnxserve")
        root.title(f"{facts['name']}, version {facts['version']}")
        root.geometry("1180x740")
        _set_style(root)
        self.status, self.url = tk.StringVar(root), tk.StringVar(root)
        ttk.Label(root, text=root.title(), style="Title.TLabel").pack(anchor="w", padx=16, pady=(10, 0))
        self._status_line = ttk.Label(root, textvariable=self.status, wraplength=1120)
        self._status_line.pack(side="bottom", fill="x", padx=16, pady=10)
        self.tabs = ttk.Notebook(root)
        self.tabs.pack(fill="both", expand=True, padx=12, pady=8)
        predictions, server, about = (ttk.Frame(self.tabs, padding=12) for _ in range(3))
        for tab, title in ((predictions, "Predictions"), (server, "Server"), (about, "About")):
            self.tabs.add(tab, text=title)
        self.fields, self.server_fields = self._add_form(predictions), dict[str, tk.StringVar]()
        self._add_results(predictions)
        for name, (text, note) in _SERVER_FIELDS.items():
            self.server_fields[name] = _add_field(server, self.toggle_server, name, note, text)
        self._server_button = ttk.Button(server, style="Accent.TButton", command=self.toggle_server)
        self._server_button.pack(anchor="w", pady=12)
        ttk.Entry(server, textvariable=self.url, state="readonly", width=32).pack(anchor="w")
        for row, (name, value) in enumerate(facts.items()):
            ttk.Label(about, text=name, style="Note.TLabel").grid(row=row, sticky="nw", padx=(0, 24), pady=4)
            ttk.Label(about, text=value, wraplength=800).grid(row=row, column=1, sticky="w", pady=4)
        root.bind("<Control-o>", lambda event: self.open_file())
        root.bind("<Control-s>", lambda event: self.save())
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._show_server("")
        self._report("Fill in the form, or open a CSV or Excel file.")
        self._poll()

    def close(self) -> None:
        """Close the window, and stop the server."""
        self.root.withdraw()
        self._server.close()
        self.root.destroy()

    def predict(self) -> None:
        """Predict the row of the form."""
        body = csv_text([[*self.fields], [field.get() for field in self.fields.values()]]).encode()
        self._start("predicting", lambda: predict_csv(self.model, body), self._show)

    def open_file(self, path: str = "") -> None:
        """Predict the rows of a CSV or Excel file; without a path, the user selects a file."""
        if path := path or filedialog.askopenfilename(filetypes=_FILES):
            self._start(f"predicting {Path(path).name}", lambda: predict_file(self.model, Path(path)), self._show)

    def save(self, path: str = "") -> None:
        """Write the rows of the last result with their predictions to a CSV or Excel file."""
        columns = self.inputs | self.predictions
        if not columns:
            self._report("There are no predictions yet; predict a row, or open a file.", _RED)
        # The dialog asks before it returns an existing file.
        elif path := path or filedialog.asksaveasfilename(filetypes=_FILES, defaultextension=".csv"):
            self._start("saving", lambda: save_columns(Path(path), columns), lambda _: self._report(f"Saved {path}"))

    def toggle_server(self) -> None:
        """Start the server with the settings of its form, or stop it."""
        if self.url.get():
            self._start("stopping the server", self._server.close, lambda _: self._show_server(""))
            return
        settings = [field.get().strip() or _SERVER_FIELDS[name][0] for name, field in self.server_fields.items()]
        server = local_server(self._folder, self._facts["name"], self._facts["version"], *settings)
        self._start("starting the server", lambda: self._server.enter_context(server), self._show_server)

    def _start(self, doing: str, work: Callable[[], T], show: Callable[[T], object]) -> None:
        """Call `work` in a thread, and then show its result or its error. Only one call runs at a time."""

        def run() -> None:
            try:
                result = work()
                self._outcomes.put(lambda: show(result))
            except OnnxserveError as error:
                message = without_row_number(error.message)
                self._outcomes.put(lambda: self._report(message, _RED))
            except Exception:
                logger.exception("%s failed", doing)
                self._outcomes.put(lambda: self._report(f"{doing} failed unexpectedly", _RED))

        if not self.is_busy:
            self.is_busy = True
            self._report(f"{doing.capitalize()} …")
            threading.Thread(target=run, daemon=True).start()

    def _poll(self) -> None:
        self.root.after(_POLL_MS, self._poll)
        with suppress(queue.Empty):
            outcome = self._outcomes.get_nowait()
            self.is_busy = False
            outcome()

    def _report(self, message: str, colour: str = _INK) -> None:
        self.status.set(message)
        self._status_line.configure(foreground=colour)

    def _show(self, result: tuple[Columns, Columns]) -> None:
        self.inputs, self.predictions = result
        columns = self.predictions | {name: values for name, values in self.inputs.items() if name not in result[1]}
        self.table.delete(*self.table.get_children())
        self.table.configure(columns=list(range(len(columns))))
        for index, name in enumerate(columns):
            self.table.heading(index, text=name, anchor="w")
            self.table.column(index, width=min(max(90, 9 * len(name)), 220), stretch=False)
        for row in islice(zip(*columns.values(), strict=True), _SHOWN_ROWS):
            texts = [f"{value:.6g}" if isinstance(value, float) else as_text(value) or "" for value in row]
            self.table.insert("", "end", values=texts)
        count = len(next(iter(columns.values())))
        shown = f"; the table shows the first {_SHOWN_ROWS:,}" if count > _SHOWN_ROWS else ""
        self._report(f"Predicted {count:,} row{'s' if count > 1 else ''}{shown}")
        self._draw()

    def _draw(self) -> None:
        """Draw the numbers of a single row, a histogram of numeric predictions, or the number of rows per label."""
        self.chart.delete("all")
        if not self.predictions:
            return
        name, values = next(iter(self.predictions.items()))
        floats = [value for value in values if isinstance(value, float)]
        numbers = {label: column[0] for label, column in self.predictions.items() if isinstance(column[0], float)}
        if len(values) == 1 and numbers:
            _draw_bars(self.chart, "Predictions for this row", [*numbers], [*numbers.values()])
        elif floats:
            counts, edges = np.histogram(floats, _BINS)
            _draw_bars(self.chart, f"Rows by {name}", [f"{edge:.4g}" for edge in edges], counts.tolist())
        else:
            counted = dict(Counter(as_text(value) or "missing" for value in values).most_common(_MOST_BARS))
            _draw_bars(self.chart, f"Rows by {name}", [*counted], [*counted.values()])

    def _show_server(self, url: str) -> None:
        self.url.set(url)
        self._server_button.configure(text="Stop (Enter)" if url else "Start (Enter)")
        self._report(f"The server runs; its documentation is at {url}/docs" if url else "The server is stopped")

    def _add_form(self, tab: ttk.Frame) -> dict[str, tk.StringVar]:
        """Add one field per column, with the first row of the input example, and return the texts of the fields."""
        artifact, schema, example = self.model.artifact, self.model.schema, self._folder / INPUT_EXAMPLE
        form, rows = ttk.Frame(tab), dict[str, np.ndarray]()
        form.pack(side="left", fill="y", padx=(0, 16))
        if not schema.columns:
            ttk.Label(form, text="This model takes tensors, for which\nthere is no form. Start the server.").pack()
            return {}
        button = ttk.Button(form, text="Predict (Enter)", style="Accent.TButton", command=self.predict)
        button.pack(side="bottom", fill="x", pady=(8, 0))
        inner = _scrolled(form)
        if example.is_file():
            rows = schema.to_columns(protocols.mlflow.decode(JSON, example.read_bytes(), schema))
        choices, fields = {**artifact.categories, **artifact.refusals.categories}, dict[str, tk.StringVar]()
        for name, kind in ((column.name, _WORDS.get(column.type, "number")) for column in schema.columns):
            text = as_text(rows[name][0]) if name in rows else None
            fields[name] = _add_field(inner, self.predict, name, kind, text or "", choices.get(name, ()))
        return fields

    def _add_results(self, tab: ttk.Frame) -> None:
        results = ttk.Frame(tab)
        results.pack(side="left", fill="both", expand=True)
        buttons = ttk.Frame(results)
        buttons.pack(fill="x", pady=(0, 8))
        for text, command in (("Open file … (Ctrl+O)", self.open_file), ("Save … (Ctrl+S)", self.save)):
            ttk.Button(buttons, text=text, command=command).pack(side="left", padx=(0, 8))
        self.chart = tk.Canvas(results, height=220, background=_WHITE, highlightthickness=0)
        self.chart.pack(side="bottom", fill="x", pady=(10, 0))
        self.chart.bind("<Configure>", lambda event: self._draw())
        self.table = ttk.Treeview(results, show="headings", selectmode="browse")
        down = ttk.Scrollbar(results, command=self.table.yview)
        across = ttk.Scrollbar(results, orient="horizontal", command=self.table.xview)
        self.table.configure(yscrollcommand=down.set, xscrollcommand=across.set)
        across.pack(side="bottom", fill="x")
        down.pack(side="right", fill="y")
        self.table.pack(fill="both", expand=True)


def _add_field(
    parent: ttk.Frame, enter: Callable[[], None], name: str, note: str, text: str, choices: Sequence[object] = ()
) -> tk.StringVar:
    """Add a field below its name and a note about its values, and return its text. The Enter key calls `enter`."""
    field = tk.StringVar(parent, text)
    ttk.Label(parent, text=name).pack(anchor="w")
    ttk.Label(parent, text=note, style="Note.TLabel").pack(anchor="w")
    if note == _WORDS["boolean"]:
        field.set(text or "false")
        widget: ttk.Widget = ttk.Checkbutton(parent, text="yes", variable=field, onvalue="true", offvalue="false")
    elif choices:
        values = [as_text(choice) or "" for choice in choices]
        widget = ttk.Combobox(parent, textvariable=field, values=values, width=22)
    else:
        widget = ttk.Entry(parent, textvariable=field, width=24)
    widget.bind("<Return>", lambda event: enter())
    widget.pack(anchor="w", pady=(2, 12))
    return field


def _scrolled(parent: ttk.Frame) -> ttk.Frame:
    """Return a frame that scrolls in its parent, also to a field that the Tab key reaches."""

    def show(event: "tk.Event[tk.Misc]") -> None:
        if str(event.widget).startswith(f"{inner}."):
            canvas.yview_moveto((event.widget.winfo_y() - 60) / inner.winfo_height())

    canvas, bar = tk.Canvas(parent, background=_PAPER, highlightthickness=0), ttk.Scrollbar(parent)
    inner = ttk.Frame(canvas)
    canvas.create_window(0, 0, anchor="nw", window=inner)
    canvas.configure(yscrollcommand=bar.set)
    bar.configure(command=canvas.yview)
    inner.bind("<Configure>", lambda _: canvas.configure(scrollregion=canvas.bbox("all"), width=inner.winfo_reqwidth()))
    inner.bind_all("<FocusIn>", show)
    canvas.pack(side="left", fill="both", expand=True)
    bar.pack(side="right", fill="y")
    return inner


def _draw_bars(canvas: tk.Canvas, title: str, labels: Sequence[str], values: Sequence[float]) -> None:
    """Draw one bar per value. A histogram has one label more than bars: the edges, of which every sixth is written."""
    is_histogram, left, top = len(labels) > len(values), 24, 48
    right, bottom = canvas.winfo_width() - left, canvas.winfo_height() - 26
    canvas.create_text(left, 16, text=title, anchor="w", fill=_INK, font="TkHeadingFont")
    canvas.create_line(left, bottom, right, bottom, fill=_GREY)
    step, highest = (right - left) / len(values), max(*values, 0) or 1
    gap = 1 if is_histogram else min(step * 0.15, 24)
    for index, value in enumerate(values):
        x, y = left + step * index, bottom - (bottom - top) * max(value, 0) / highest
        canvas.create_rectangle(x + gap, y, x + step - gap, bottom, fill=_BLUE, width=0)
        canvas.create_text(x + step / 2, y - 9, text=f"{value:.4g}", fill=_INK)
    for index in range(0, len(labels), 6 if is_histogram else 1):
        x = left + step * (index if is_histogram else index + 0.5)
        canvas.create_text(x, bottom + 13, text=labels[index], width=0 if is_histogram else step, fill=_INK)


def _set_style(root: tk.Tk) -> None:
    root.configure(background=_PAPER)
    style = ttk.Style(root)
    style.theme_use("clam")
    style.configure(".", background=_PAPER, foreground=_INK)
    style.configure("Title.TLabel", font=("TkDefaultFont", 18, "bold"))
    style.configure("Note.TLabel", foreground=_GREY)
    style.configure("Treeview", background=_WHITE, fieldbackground=_WHITE, rowheight=24)
    style.configure("TButton", padding=(12, 6))
    style.configure("Accent.TButton", background=_BLUE, foreground=_WHITE)
    style.map("Accent.TButton", background=[("active", _INK)])
    style.map("TNotebook.Tab", background=[("selected", _WHITE), ("!selected", _PAPER)])
