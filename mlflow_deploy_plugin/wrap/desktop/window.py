"""The window of a desktop program: a form, a table and a chart of predictions, a local
server, and the provenance.
"""

import logging
import tkinter as tk
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tkinter import filedialog, ttk
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import without_row_number
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.serve.embed import local_server
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.log_columns import as_text
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.desktop.tables import (
    Columns,
    csv_text,
    predict_csv,
    predict_file,
    save_columns,
)

Bars = Sequence[tuple[str, float]]
_WORDS = {
    "string": "text",
    "boolean": "true or false",
    "integer": "whole number",
    "long": "whole number",
}
_FILES = [("CSV or Excel", "*.csv *.xlsx"), ("All files", "*")]
_SERVER_FIELDS = {
    "host": ("127.0.0.1", "127.0.0.1: only this machine; 0.0.0.0: also other machines"),
    "port": ("8080", "whole number"),
    "API key": ("", "optional; clients send it as Authorization: Bearer KEY"),
}
_SHOWN_ROWS = 1000
_MOST_BARS = 12
_POLL_MS = 30
_MARGIN = 24
"""The pixels to the left and to the right of the chart."""
_BLUE = "#2563a8"
_RED = "#b3261e"
_BLACK = "#1f2933"
_GREY = "#5f6b78"
_PAPER = "#f5f6f8"

logger = logging.getLogger(__name__)


class ProgramWindow:
    """The window of the version in an MLmodel folder. Work runs in a thread, so that
    the window stays responsive.

    Attributes:
        fields: the texts of the form by name; empty for a model of tensors.
        server_fields: the texts of the server's form by name.
        inputs: the input columns of the last result.
        predictions: the predicted columns of the last result.
        status: the last message.
        url: the address of the running server; empty if the server is stopped.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.model = OnnxModel.load(folder)
        self.inputs = Columns()
        self.predictions = Columns()
        self.is_busy = False
        self._folder = folder
        self._facts = facts
        self._thread = ThreadPoolExecutor(1)
        self._server = ExitStack()
        self._chart: tuple[str, Bars] = ("", [])
        self.root = tk.Tk(className="onnxserve")
        self.status = tk.StringVar(self.root)
        self.url = tk.StringVar(self.root)
        self._add_frame()
        predictions, server, about = map(self._add_tab, ("Predictions", "Server", "About"))
        self.fields = self._add_form(predictions)
        self._add_results(predictions)
        self.server_fields = self._add_server_form(server)
        self.about = _add_page(about)
        for name, text in facts.items():
            self.about.insert("end", f"{name}\n", "note", f"{text}\n\n")
        self.root.bind("<Control-o>", lambda event: self.open_file())
        self.root.bind("<Control-s>", lambda event: self.save())
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        self._show_server("")
        self._report("Fill in the form, or open a CSV or Excel file.")

    def _add_frame(self) -> None:
        """Add the title, the line of the status, and the empty tabs."""
        root = self.root
        root.title(f"{self._facts['name']}, version {self._facts['version']}")
        root.geometry("1180x740")
        style = ttk.Style(root)
        style.theme_use("clam")
        root.configure(background=_PAPER)
        style.configure(".", background=_PAPER)
        style.configure("Treeview", rowheight=24)
        title = ttk.Label(
            root,
            text=root.title(),
            font=("TkDefaultFont", 18, "bold"),
        )
        title.pack(anchor="w", padx=16, pady=(10, 0))
        self._status_line = ttk.Label(root, textvariable=self.status, wraplength=1120)
        self._status_line.pack(side="bottom", fill="x", padx=16, pady=10)
        self.tabs = ttk.Notebook(root)
        self.tabs.pack(fill="both", expand=True, padx=12, pady=8)

    def _add_tab(self, title: str) -> ttk.Frame:
        tab = ttk.Frame(self.tabs, padding=12)
        self.tabs.add(tab, text=title)
        return tab

    def _add_server_form(self, tab: ttk.Frame) -> dict[str, tk.StringVar]:
        """Add one field per setting of the server, and return their texts."""
        address = ttk.Entry(tab, textvariable=self.url, state="readonly")
        address.pack(side="bottom", fill="x")
        self._server_button = _add_button(tab, "", self.toggle_server)
        page = _add_page(tab)
        return {
            name: _add_field(page, self.toggle_server, name, note, text)
            for name, (text, note) in _SERVER_FIELDS.items()
        }

    def close(self) -> None:
        """Close the window, wait for the work in the thread, and stop the server."""
        self.root.withdraw()
        # A file is saved completely, and a server that starts can be stopped.
        self._thread.shutdown()
        self._server.close()
        self.root.destroy()

    def predict(self) -> None:
        """Predict the row of the form."""
        values = [field.get() for field in self.fields.values()]
        body = csv_text([[*self.fields], values]).encode()
        self._start("predicting", lambda: predict_csv(self.model, body), self._show)

    def open_file(self, path: str = "") -> None:
        """Predict the rows of a CSV or Excel file; without a path, the user selects a
        file.
        """
        path = path or filedialog.askopenfilename(filetypes=_FILES)
        if path:
            self._start(
                f"predicting {Path(path).name}",
                lambda: predict_file(self.model, Path(path)),
                self._show,
            )

    def save(self, path: str = "") -> None:
        """Write the rows of the last result with their predictions to a CSV or Excel
        file.
        """
        columns = self.inputs | self.predictions
        if not columns:
            self._report("There are no predictions yet; predict a row, or open a file.", _RED)
            return
        # The dialog asks before it returns an existing file.
        path = path or filedialog.asksaveasfilename(filetypes=_FILES, defaultextension=".csv")
        if path:
            self._start(
                "saving",
                lambda: save_columns(Path(path), columns),
                lambda _: self._report(f"Saved {path}"),
            )

    def toggle_server(self) -> None:
        """Start the server with the settings of its form, or stop it."""
        if self.url.get():
            self._start("stopping the server", self._server.close, lambda _: self._show_server(""))
            return
        settings = [
            field.get().strip() or _SERVER_FIELDS[name][0]
            for name, field in self.server_fields.items()
        ]
        facts = self._facts
        server = local_server(self._folder, facts["name"], facts["version"], *settings)
        self._start(
            "starting the server",
            lambda: self._server.enter_context(server),
            self._show_server,
        )

    def _start(
        self,
        doing: str,
        work: Callable[[], Any],
        show: Callable[[Any], object],
    ) -> None:
        """Call `work` in the thread, and then show its result or its error. Only one
        call runs at a time.

        Args:
            doing: the description of the work in the line of the status.
            work: the function that runs in the thread.
            show: a function that shows the result of `work`.
        """
        if not self.is_busy:
            self.is_busy = True
            self._report(f"{doing.capitalize()} …")
            self._finish(doing, self._thread.submit(work), show)

    def _finish(
        self,
        doing: str,
        result: Future[Any],
        show: Callable[[Any], object],
    ) -> None:
        """Show the result or the error of the work; if it still runs, look again
        later.
        """
        if not result.done():
            self.root.after(_POLL_MS, self._finish, doing, result, show)
            return
        self.is_busy = False
        try:
            show(result.result())
        except OnnxserveError as error:
            self._report(without_row_number(error.message), _RED)
        except Exception:
            logger.exception("%s failed", doing)
            self._report(f"{doing} failed unexpectedly", _RED)

    def _report(self, message: str, colour: str = _BLACK) -> None:
        self.status.set(message)
        self._status_line.configure(foreground=colour)

    def _show(self, result: tuple[Columns, Columns]) -> None:
        """Show the columns of the inputs and of the predictions, which are the parts of
        `result`: the predictions first, and instead of inputs of the same name.
        """
        self.inputs, self.predictions = result
        columns = self.predictions | {
            name: values for name, values in self.inputs.items() if name not in self.predictions
        }
        self.table.delete(*self.table.get_children())
        self.table.configure(columns=list(range(len(columns))))
        for index, name in enumerate(columns):
            self.table.heading(index, text=name, anchor="w")
            width = min(max(90, 9 * len(name)), 220)
            self.table.column(index, width=width, stretch=False)
        for row in islice(zip(*columns.values(), strict=True), _SHOWN_ROWS):
            self.table.insert("", "end", values=list(map(_shown, row)))
        count = len(next(iter(columns.values())))
        noun = "rows" if count > 1 else "row"
        note = f"; the table shows the first {_SHOWN_ROWS:,}" if count > _SHOWN_ROWS else ""
        self._report(f"Predicted {count:,} {noun}{note}")
        self._chart = _chart_of(self.predictions)
        self._draw()

    def _draw(self) -> None:
        """Draw the bars of the chart in the current size of the window."""
        title, bars = self._chart
        right = self.chart.winfo_width() - _MARGIN
        bottom = self.chart.winfo_height() - 26
        self.chart.delete("all")
        self.chart.create_text(_MARGIN, 16, text=title, anchor="w", font="TkHeadingFont")
        self.chart.create_line(_MARGIN, bottom, right, bottom)
        step = (right - _MARGIN) / max(len(bars), 1)
        highest = max((value for _, value in bars), default=0)
        for index, (label, value) in enumerate(bars):
            x = _MARGIN + step * (index + 0.5)
            y = bottom - (bottom - 48) * (max(0, value) / (highest or 1))
            self.chart.create_rectangle(
                x - 0.4 * step,
                y,
                x + 0.4 * step,
                bottom,
                fill=_BLUE,
                width=0,
            )
            text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            self.chart.create_text(x, y - 9, text=text)
            self.chart.create_text(
                x,
                bottom + 4,
                text=label,
                width=step,
                anchor="n",
            )

    def _show_server(self, url: str) -> None:
        """Show the address of the server; "" if it is stopped."""
        self.url.set(url)
        if url:
            self._server_button.configure(text="Stop (Enter)")
            self._report(f"The server runs; its documentation is at {url}/docs")
        else:
            self._server_button.configure(text="Start (Enter)")
            self._report("The server is stopped")

    def _add_form(self, tab: ttk.Frame) -> dict[str, tk.StringVar]:
        """Add one field per column, with the first row of the input example, and return
        the texts of the fields.
        """
        schema = self.model.schema
        form = ttk.Frame(tab)
        form.pack(side="left", fill="y", padx=(0, 16))
        _add_button(form, "Save … (Ctrl+S)", self.save)
        _add_button(form, "Open file … (Ctrl+O)", self.open_file)
        if schema.columns:
            _add_button(form, "Predict (Enter)", self.predict)
        page = _add_page(form)
        texts = self._example_texts()
        choices = self._choices()
        fields = {}
        for column in schema.columns:
            fields[column.name] = _add_field(
                page,
                self.predict,
                column.name,
                _WORDS.get(column.type, "number"),
                texts.get(column.name) or "",
                choices.get(column.name, ()),
            )
        if not fields:
            page.insert(
                "end",
                "This model takes tensors, for which there is no form. Start the server.",
            )
        return fields

    def _example_texts(self) -> dict[str, str | None]:
        """Return the first row of the input example; empty for tensors or without an
        example.
        """
        schema = self.model.schema
        example = self._folder / INPUT_EXAMPLE
        if not (schema.columns and example.is_file()):
            return {}
        rows = schema.to_columns(mlflow_protocol.decode(JSON, example.read_bytes(), schema))
        return {name: as_text(values[0]) for name, values in rows.items()}

    def _choices(self) -> dict[str, Sequence[object]]:
        """Return the values among which the user selects, by column."""
        artifact = self.model.artifact
        columns = self.model.schema.columns
        booleans = [column.name for column in columns if column.type == "boolean"]
        return {
            **artifact.categories,
            **artifact.refusals.categories,
            **dict.fromkeys(booleans, (True, False)),
        }

    def _add_results(self, tab: ttk.Frame) -> None:
        """Add the empty table of the predictions, and the chart below it."""
        self.chart = tk.Canvas(tab, height=220, background="white", highlightthickness=0)
        self.chart.pack(side="bottom", fill="x", pady=(10, 0))
        self.chart.bind("<Configure>", lambda event: self._draw())
        self.table = ttk.Treeview(tab, show="headings", selectmode="browse")
        across = ttk.Scrollbar(tab, orient="horizontal", command=self.table.xview)
        self.table.configure(xscrollcommand=across.set)
        across.pack(side="bottom", fill="x")
        _pack_with_scrollbar(self.table)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else as_text(value) or ""


def _chart_of(predictions: Columns) -> tuple[str, Bars]:
    """Return the title and at most 12 bars of a chart.

    The bars are the largest numbers of a single row, or the number of rows per label or
    per interval of numbers.
    """
    name, values = next(iter(predictions.items()))
    row = Counter(
        {label: column[0] for label, column in predictions.items() if isinstance(column[0], float)},
    )
    if len(values) == 1 and row:
        return "Predictions for this row", row.most_common(_MOST_BARS)
    floats = [value for value in values if isinstance(value, float)]
    if len(set(floats)) > _MOST_BARS:
        counts, edges = np.histogram(floats, _MOST_BARS)
        intervals = (f"≥ {edge:.3g}" for edge in edges[:-1])
        return f"Rows by {name}", [*zip(intervals, counts.tolist(), strict=True)]
    labels = Counter(as_text(value) or "missing" for value in values)
    return f"Rows by {name}", labels.most_common(_MOST_BARS)


def _add_page(parent: ttk.Frame) -> tk.Text:
    """Add a read-only text that scrolls, in which fields are embedded."""
    page = tk.Text(
        parent,
        width=28,
        padx=8,
        wrap="word",
        relief="flat",
        font="TkDefaultFont",
        takefocus=False,
    )
    page.tag_configure("note", foreground=_GREY)
    page.after_idle(lambda: page.configure(state="disabled"))  # The caller first adds the fields.
    _pack_with_scrollbar(page)
    return page


def _pack_with_scrollbar(widget: tk.Text | ttk.Treeview) -> None:
    bar = ttk.Scrollbar(widget.master, command=widget.yview)
    widget.configure(yscrollcommand=bar.set)
    bar.pack(side="right", fill="y")
    widget.pack(side="left", fill="both", expand=True)


def _add_button(
    parent: ttk.Frame,
    text: str,
    command: Callable[[], None],
) -> ttk.Button:
    button = ttk.Button(parent, text=text, command=command)
    button.pack(side="bottom", fill="x", pady=(8, 0))
    return button


def _add_field(
    page: tk.Text,
    enter: Callable[[], None],
    name: str,
    note: str,
    text: str,
    choices: Sequence[object] = (),
) -> tk.StringVar:
    """Add a field below its name and a note about its values, and return its text.

    Args:
        page: the text in which the field is embedded.
        enter: the function that the Enter key calls.
        name: the name of the field.
        note: the note about its values.
        text: the first value.
        choices: the values among which the user selects; empty for any value.
    """
    field = tk.StringVar(page, text)
    values = [as_text(choice) or "" for choice in choices]
    if choices:
        widget: ttk.Entry = ttk.Combobox(page, textvariable=field, values=values)
    else:
        widget = ttk.Entry(page, textvariable=field)
    widget.bind("<Return>", lambda event: enter())
    # The Tab key may reach a hidden field.
    widget.bind("<FocusIn>", lambda event: page.see(str(widget)))
    for wheel in ("<Button-4>", "<Button-5>", "<MouseWheel>"):
        # A list would change its value while the form scrolls.
        widget.bind(wheel, lambda event: "break")
    page.insert("end", f"{name}\n")
    page.insert("end", f"{note}\n", "note")
    page.window_create("end", window=widget)
    page.insert("end", "\n\n")
    return field
