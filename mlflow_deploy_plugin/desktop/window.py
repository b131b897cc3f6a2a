"""The window of a desktop program: a form, a table and a chart of predictions, a local server, and the provenance."""

import json
import logging
import queue
import signal
import threading
import tkinter as tk
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tkinter import filedialog, ttk
from typing import TypeVar

import numpy as np

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.desktop.local_server import LocalServer
from mlflow_deploy_plugin.desktop.tables import Columns, Table, predict, predict_file, predict_table, save_table
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.messages import without_row_number
from mlflow_deploy_plugin.protocols import JSON
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, OnnxModel
from mlflow_deploy_plugin.runtime.log_columns import as_text

T = TypeVar("T")
_WORDS = {"string": "text", "boolean": "yes or no", "integer": "whole number", "long": "whole number"}
_FILES = [("CSV, Excel or a JSON request", "*.csv *.xlsx *.json"), ("All files", "*")]
_SERVER_FIELDS = {
    "host": ("127.0.0.1", "127.0.0.1 is this machine only; 0.0.0.0 opens the server to the network"),
    "port": ("8080", "a free port"),
    "API key": ("", "optional; callers send it as Authorization: Bearer KEY"),
    "rate limit": ("", "optional, per caller, such as 100/minute"),
}
_SHOWN_ROWS, _MOST_BARS, _BINS, _POLL_MS, _MOST_EXAMPLE = 1000, 12, 24, 30, 10_000
_BLUE, _RED, _PAPER, _INK, _GREY, _WHITE = "#2563a8", "#b3261e", "#f5f6f8", "#1f2933", "#5f6b78", "#ffffff"

logger = logging.getLogger(__name__)


class Window:
    """The window of the version in an MLmodel folder. Work runs in a thread, so that the window stays responsive.

    Attributes:
        fields / server_fields: the texts of the two forms by name. A model of tensors has the only field "request".
        inputs / predictions: the columns of the last result.
        status: the last message.
        server: the running server, or None.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.model, self.inputs, self.predictions = OnnxModel.load(folder), Columns(), Columns()
        self.server: LocalServer | None = None
        self.is_busy = False
        self._folder, self._facts, self._outcomes = folder, facts, queue.SimpleQueue[Callable[[], object]]()
        self.root = root = tk.Tk(className="onnxserve")
        root.title(f"{facts['name']}, version {facts['version']}")
        root.geometry("1180x740")
        _set_style(root)
        ttk.Label(root, text=facts["name"], style="Title.TLabel").pack(anchor="w", padx=16, pady=(10, 0))
        ttk.Label(root, text=f"version {facts['version']}", style="Note.TLabel").pack(anchor="w", padx=16)
        self.status = tk.StringVar(root, "Fill in the form, or open a CSV or Excel file.")
        self._status_line = ttk.Label(root, textvariable=self.status, wraplength=1120)
        self._status_line.pack(side="bottom", fill="x", padx=16, pady=8)
        self._progress = ttk.Progressbar(root, mode="indeterminate")
        self._progress.pack(side="bottom", fill="x", padx=16)
        self.tabs = ttk.Notebook(root)
        self.tabs.pack(fill="both", expand=True, padx=12, pady=8)
        predictions, server, about = (ttk.Frame(self.tabs, padding=12) for _ in range(3))
        for tab, title in ((predictions, "Predictions"), (server, "Server"), (about, "About")):
            self.tabs.add(tab, text=title)
        self._fill_predictions(predictions)
        self._fill_server(server)
        for row, (name, value) in enumerate(facts.items()):
            ttk.Label(about, text=name, style="Note.TLabel").grid(row=row, sticky="nw", padx=(0, 24))
            ttk.Label(about, text=value, wraplength=800).grid(row=row, column=1, sticky="w", pady=4)
        for key, action in (("<Control-o>", self.ask_open), ("<Control-s>", self.ask_save), ("<Return>", self._enter)):
            root.bind(key, lambda event, action=action: action())
        root.protocol("WM_DELETE_WINDOW", self.close)
        signal.signal(signal.SIGTERM, lambda number, frame: self.close())
        self._poll()

    def close(self) -> None:
        """Close the window, and stop the server."""
        self.root.withdraw()
        if self.server is not None:
            self.server.close()
        self.root.destroy()

    def predict(self) -> None:
        """Predict the row or the request in the form."""
        texts = {name: field.get() for name, field in self.fields.items()}
        if self.model.schema.columns:
            table = Table([*texts], [[*texts.values()]], [])
            self._start("predicting", lambda: predict_table(self.model, table), self._show)
        else:
            self._start("predicting", lambda: predict(self.model, JSON, texts["request"].encode()), self._show)

    def open_file(self, path: Path) -> None:
        """Predict the rows of a CSV or Excel file, or a request in a JSON file."""
        self._start(f"predicting {path.name}", lambda: predict_file(self.model, path), self._show)

    def save(self, path: Path) -> None:
        """Write the rows of the last result with their predictions to a CSV or Excel file."""
        columns = self.inputs | self.predictions
        self._start("saving", lambda: save_table(path, columns), lambda _: self._report(f"Saved {path}"))

    def ask_open(self) -> None:
        if path := filedialog.askopenfilename(filetypes=_FILES):
            self.open_file(Path(path))

    def ask_save(self) -> None:
        if not self.predictions:
            self._report("There are no predictions yet; predict a row or open a file first", is_error=True)
        elif path := filedialog.asksaveasfilename(
            filetypes=_FILES, defaultextension=".csv"
        ):  # Asks before overwriting.
            self.save(Path(path))

    def toggle_server(self) -> None:
        """Start the server with the settings in its form, or stop it."""
        if self.server is not None:
            self._start("stopping the server", self.server.close, self._show_server)
            return
        settings = [field.get().strip() for field in self.server_fields.values()]
        version = self._facts["name"], self._facts["version"]
        self._start("starting the server", lambda: LocalServer(self._folder, *version, *settings), self._show_server)

    def _start(self, doing: str, work: Callable[[], T], show: Callable[[T], object]) -> None:
        """Call `work` in a thread, and then show its result or its error. Only one call runs at a time."""
        if self.is_busy:
            return
        self.is_busy = True
        self._report(f"{doing.capitalize()} …")
        self._progress.start()

        def run() -> None:
            try:
                result = work()
                self._outcomes.put(lambda: show(result))
            except OnnxserveError as error:
                message = without_row_number(error.message)
                self._outcomes.put(lambda: self._report(message, is_error=True))
            except Exception as error:
                logger.exception("%s failed", doing)
                message = f"{doing} failed: {type(error).__name__}"
                self._outcomes.put(lambda: self._report(message, is_error=True))

        threading.Thread(target=run, daemon=True).start()

    def _poll(self) -> None:
        with suppress(queue.Empty):
            outcome = self._outcomes.get_nowait()
            self.is_busy = False
            self._progress.stop()
            outcome()
        self.root.after(_POLL_MS, self._poll)

    def _report(self, message: str, is_error: bool = False) -> None:
        self.status.set(message)
        self._status_line.configure(foreground=_RED if is_error else _INK)

    def _enter(self) -> None:
        if self.tabs.index("current") < 2:
            (self.predict, self.toggle_server)[self.tabs.index("current")]()

    def _show(self, result: tuple[Columns, Columns]) -> None:
        """Show the inputs and the predictions in the table, and the first prediction in the chart."""
        self.inputs, self.predictions = result
        columns = self.predictions | {
            name: values for name, values in self.inputs.items() if name not in self.predictions
        }
        names, count = [*columns], len(next(iter(self.predictions.values())))
        self.table.delete(*self.table.get_children())
        self.table.configure(columns=[str(index) for index in range(len(names))])
        for index, name in enumerate(names):
            self.table.heading(index, text=name, anchor="w")
            self.table.column(index, width=max(90, min(9 * len(name), 220)), stretch=False)
        for row in list(zip(*columns.values(), strict=True))[:_SHOWN_ROWS]:
            self.table.insert(
                "",
                "end",
                values=[f"{value:.6g}" if isinstance(value, float) else as_text(value) or "" for value in row],
            )
        self.charted.configure(values=[*self.predictions])
        self.charted.current(0)
        self._draw()
        rows = (
            "1 row"
            if count == 1
            else f"{count:,} rows" + (f", of which {_SHOWN_ROWS:,} are shown" if count > _SHOWN_ROWS else "")
        )
        first = as_text(next(iter(self.predictions.values()))[0]) or "missing"
        self._report(f"Prediction: {first}" if count == 1 else f"Predicted {rows}")

    def _draw(self) -> None:
        """Draw a histogram of numbers, the rows per label, or, for a single row, the probabilities."""
        self.chart.delete("all")
        name = self.charted.get()
        if not name:
            return
        values = self.predictions[name]
        numbers = {label: column[0] for label, column in self.predictions.items() if isinstance(column[0], float)}
        if len(values) == 1 and len(numbers) > 1:
            _draw_bars(self.chart, "values of this row", [*numbers], [*numbers.values()])
        elif len({*map(as_text, values)}) > _MOST_BARS and all(isinstance(value, int | float) for value in values):
            counts, edges = np.histogram(values, _BINS)
            _draw_bars(self.chart, f"rows per value of {name}", [f"{edge:.4g}" for edge in edges], counts.tolist())
        else:
            counted = Counter(as_text(value) or "missing" for value in values).most_common(_MOST_BARS)
            _draw_bars(
                self.chart,
                f"rows per value of {name}",
                [label for label, _ in counted],
                [count for _, count in counted],
            )

    def _show_server(self, server: LocalServer | None) -> None:
        self.server = server
        self._server_button.configure(text="Start (Enter)" if server is None else "Stop (Enter)")
        for widget in self._server_widgets:
            widget.configure(state="normal" if server is None else "disabled")
        self._server_url.set("" if server is None else server.url)
        self._report(
            "The server has stopped" if server is None else f"The server runs at {server.url}; see {server.url}/docs"
        )

    def _fill_predictions(self, tab: ttk.Frame) -> None:
        form, results = ttk.Frame(tab), ttk.Frame(tab)
        form.pack(side="left", fill="y", padx=(0, 16))
        results.pack(side="left", fill="both", expand=True)
        self._fill_form(form)
        bar = ttk.Frame(results)
        bar.pack(fill="x", pady=(0, 8))
        for text, command in (("Open file … (Ctrl+O)", self.ask_open), ("Save … (Ctrl+S)", self.ask_save)):
            ttk.Button(bar, text=text, command=command).pack(side="left", padx=(0, 8))
        self.charted = ttk.Combobox(bar, state="readonly", width=26)
        self.charted.pack(side="right")
        self.charted.bind("<<ComboboxSelected>>", lambda event: self._draw())
        ttk.Label(bar, text="Chart of").pack(side="right", padx=8)
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

    def _fill_form(self, form: ttk.Frame) -> None:
        """Add one field per column with the first row of the input example, or one field for a request in JSON."""
        artifact, schema, example = self.model.artifact, self.model.schema, self._folder / INPUT_EXAMPLE
        button = ttk.Button(form, text="Predict (Enter)", style="Accent.TButton", command=self.predict)
        button.pack(side="bottom", fill="x", pady=(8, 0))
        inner, rows = _scrolled(form), dict[str, np.ndarray]()
        if example.is_file():
            rows = schema.to_columns(protocols.mlflow.decode(JSON, example.read_bytes(), schema))
        self.fields: dict[str, tk.StringVar] = {}
        choices = {**artifact.categories, **artifact.refusals.categories}
        for column in schema.columns:
            text = as_text(rows[column.name][0]) if column.name in rows else None
            is_boolean = column.type == "boolean"
            field = tk.StringVar(inner, text or ("false" if is_boolean else ""))
            if is_boolean:
                widget: ttk.Widget = ttk.Checkbutton(
                    inner, text="yes", variable=field, onvalue="true", offvalue="false"
                )
            elif column.name in choices:
                widget = ttk.Combobox(inner, textvariable=field, values=list(map(as_text, choices[column.name])))
            else:
                widget = ttk.Entry(inner, textvariable=field)
            self.fields[column.name] = field
            _add_field(widget, column.name, _WORDS.get(column.type, "number"))
        if not schema.columns:
            small = {name: array[:1] if schema.has_rows else array for name, array in rows.items()}
            small = {name: array.tolist() for name, array in small.items() if array.size < _MOST_EXAMPLE}
            request = {"inputs": small if len(small) > 1 else next(iter(small.values()), [])}
            self.fields["request"] = tk.StringVar(inner, json.dumps(request))
            _add_field(
                ttk.Entry(inner, textvariable=self.fields["request"], width=40), "request", "JSON, as for /invocations"
            )

    def _fill_server(self, tab: ttk.Frame) -> None:
        self.server_fields, self._server_widgets = dict[str, tk.StringVar](), []
        for name, (text, note) in _SERVER_FIELDS.items():
            self.server_fields[name] = tk.StringVar(tab, text)
            self._server_widgets.append(ttk.Entry(tab, textvariable=self.server_fields[name], width=40))
            _add_field(self._server_widgets[-1], name, note)
        self._server_button = ttk.Button(tab, text="Start (Enter)", style="Accent.TButton", command=self.toggle_server)
        self._server_button.pack(anchor="w", pady=8)
        self._server_url = tk.StringVar(tab)
        ttk.Entry(tab, textvariable=self._server_url, state="readonly", width=40).pack(anchor="w")


def _add_field(widget: ttk.Widget, name: str, note: str) -> None:
    """Add a widget below its name and a note about its values."""
    ttk.Label(widget.master, text=name).pack(anchor="w")
    ttk.Label(widget.master, text=note, style="Note.TLabel").pack(anchor="w")
    widget.pack(anchor="w", pady=(2, 12))


def _scrolled(parent: ttk.Frame) -> ttk.Frame:
    """Return a frame that scrolls vertically in `parent`."""
    canvas = tk.Canvas(parent, background=_PAPER, highlightthickness=0)
    bar, inner = ttk.Scrollbar(parent, command=canvas.yview), ttk.Frame(canvas)
    canvas.configure(yscrollcommand=bar.set)
    canvas.create_window(0, 0, anchor="nw", window=inner)
    inner.bind(
        "<Configure>", lambda event: canvas.configure(scrollregion=canvas.bbox("all"), width=inner.winfo_reqwidth())
    )
    bar.pack(side="right", fill="y")
    canvas.pack(side="left", fill="both", expand=True)
    return inner


def _draw_bars(canvas: tk.Canvas, title: str, labels: Sequence[str], values: Sequence[float]) -> None:
    """Draw one bar per value. For a histogram, the labels are the edges of the bars, of which every sixth is written."""
    is_histogram, left, top = len(labels) > len(values), 16, 46
    right, bottom = max(canvas.winfo_width(), 200) - 16, canvas.winfo_height() - 26
    canvas.create_text(left, 16, text=title, anchor="w", fill=_INK, font="TkHeadingFont")
    canvas.create_line(left, bottom, right, bottom, fill=_GREY)
    step = (right - left) / len(values)
    gap = 1 if is_histogram else min(step * 0.15, 24)
    for index, value in enumerate(values):
        x, y = left + step * index, bottom - (bottom - top) * max(value, 0) / (max(values) or 1)
        canvas.create_rectangle(x + gap, y, x + step - gap, bottom, fill=_BLUE, width=0)
        canvas.create_text(x + step / 2, y - 9, text=f"{value:.4g}", fill=_INK)
        if not is_histogram:
            canvas.create_text(x + step / 2, bottom + 13, text=labels[index][: max(int(step / 7), 3)], fill=_INK)
    for index in range(0, len(labels), 6) if is_histogram else ():
        canvas.create_text(min(max(left + step * index, 40), right - 24), bottom + 13, text=labels[index], fill=_INK)


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
    style.map("Accent.TButton", background=[("active", "#1d4f88")])
    style.configure("Horizontal.TProgressbar", background=_BLUE, thickness=4)
