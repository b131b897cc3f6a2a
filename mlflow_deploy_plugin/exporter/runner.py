"""Predictions of one exported model, with only ONNX Runtime and numpy.

    model = Model("model.onnx")
    model.predict([{"carrier": "UA", "distance": 1400.0}])      # as the model's own `predict`
    model.outputs(frame)["probabilities"]                       # any output of the graph

`onnxserve export` copies this file as it is, so it imports nothing else. The metadata of the model's
file hold the rest: the columns or tensors that it takes, the inputs that they feed, the meaning of its outputs.

    python predict.py ROWS.csv|ROWS.json                        # one JSON object a row
"""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read at the import
import onnxruntime

Array = npt.NDArray[Any]
METADATA_KEY = "onnxserve.model"
_REFUSED_ROWS = "onnxserve_refused_rows"  # the output that marks them, and the key of the reason
_COLUMN_TYPES = {"double": "float64", "float": "float32", "integer": "int32", "long": "int64", "boolean": "bool"}


class Model:
    """A model that is ready to answer; any number of threads may share it.

    Args:
        path: of the model's file; None for the file next to this one.
        providers: of ONNX Runtime.
        threads: that compute one call; 0 for as many as there are cores.

    Attributes:
        name / version / source: of the model that was exported; the source is its URI in the registry, if it has one.
        classes: the labels in the order of the columns of the probabilities; empty if it has none.
        columns: the columns that it takes, in their order; empty for a model of tensors.
    """

    def __init__(
        self, path: str | Path | None = None, providers: tuple[str, ...] = ("CPUExecutionProvider",), threads: int = 0
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        file = path or next(Path(__file__).parent.glob("model.o*"))
        self._session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
        known = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if known is None:
            raise ValueError(f"{file} was not made by `onnxserve export`: its metadata has no {METADATA_KEY}")
        self._known: dict[str, Any] = json.loads(known)
        self.name, self.version = str(self._known["name"]), str(self._known["version"])
        self.source = str(self._known["source"])
        self.classes: list[Any] = self._known["classes"]
        self.columns: list[str] = [column["name"] for column in self._known["columns"]]

    def predict(self, rows: Any) -> Any:
        """Return the answer of the model's `predict`: an array, rows first, or several by the names of the outputs.

        Args:
            rows: a frame, a dict of columns or tensors, a list of records, one record, or an array: the columns in
                their order, or the only tensor.

        Raises:
            ValueError: a column is missing or has values of another type.
        """
        outputs, names = self.outputs(rows), self._known["prediction"]
        return outputs[names[0]] if len(names) == 1 else {name: outputs[name] for name in names}

    def outputs(self, rows: Any) -> dict[str, Array]:
        """Return every output of the graph by its name; rows as in `predict`."""
        names = [output.name for output in self._session.get_outputs()]
        arrays = self._session.run(names, self._feeds(rows))
        if _REFUSED_ROWS in names:
            metadata = self._session.get_modelmeta().custom_metadata_map
            refused = arrays.pop(names.index(_REFUSED_ROWS))
            names.remove(_REFUSED_ROWS)
            if np.count_nonzero(refused):
                raise ValueError(f"row {int(np.flatnonzero(refused)[0])}: {metadata.get(_REFUSED_ROWS)}")
        return {  # a sequence, as one mapping a row, becomes an array of objects
            name: np.fromiter(values, object) if isinstance(values, list) else values
            for name, values in zip(names, arrays, strict=True)
        }

    def parse_texts(self, row: Mapping[str, str]) -> dict[str, str | float | bool | None]:
        """Return a row of a CSV file with the values that its texts stand for; an empty one is a missing value."""
        kinds = {column["name"]: column["type"] for column in self._known["columns"]}
        return {name: _parsed(text, kinds[name]) for name, text in row.items() if name in kinds}

    def _feeds(self, rows: Any) -> dict[str, Array]:
        columns, tensors = self._known["columns"], self._known["tensors"]
        data = self._named(rows)
        feeds = {}
        if not columns:
            if len(tensors) == 1 == len(data):  # the only tensor may be called anything
                data = {self._known["inputs"][0]["name"]: next(iter(data.values()))}
            for entry in self._known["inputs"]:
                if entry["name"] not in data:
                    raise ValueError(f"the tensor {entry['name']!r} is missing; the model takes {_quoted(tensors)}")
                feeds[entry["name"]] = np.asarray(data[entry["name"]], dtype=_dtype(entry["dtype"]))
                self._check(tensors[0]["name"] if len(tensors) == 1 else entry["name"], feeds[entry["name"]])
            return feeds
        count = max((len(values) for values in data.values()), default=0)
        arrays = {}
        for column in columns:
            if column["name"] not in data and column["required"]:
                raise ValueError(f"the column {column['name']!r} is missing; the model takes {_quoted(columns)}")
        missing = {name: entry["missing"] for entry in self._known["inputs"] for name in entry["columns"]}
        for column in columns:
            name = column["name"]
            arrays[name] = _column(column, data.get(name, [None] * count), missing.get(name))
            self._check(name, arrays[name])
        for entry in self._known["inputs"]:
            parts = [arrays[name].astype(_dtype(entry["dtype"])) for name in entry["columns"]]
            feeds[entry["name"]] = parts[0] if len(entry["shape"]) == 1 else np.stack(parts, axis=1)
        return feeds

    def _check(self, name: str, array: Array) -> None:
        """Refuse values that the original model refuses: missing and infinite numbers, unknown categories."""
        refused = self._known.get("refused", {})
        for kind, test, reason in (
            ("missing", np.isnan, "the number is missing (NaN), and the model takes no missing value"),
            ("infinite", np.isinf, "the number is infinite; the model takes finite numbers"),
        ):
            if array.dtype.kind == "f" and name in refused.get(kind, ()) and test(array).any():
                raise ValueError(f"{name!r}, row {int(np.argwhere(test(array))[0][0])}: {reason}")
        known = refused.get("categories", {}).get(name)
        if known is not None:
            known = {*known, *(entry["missing"] for entry in self._known["inputs"] if name in entry["columns"])}
            for row, value in enumerate(array.tolist()):
                if value not in known:
                    raise ValueError(f"column {name!r}, row {row}: the model does not know {value!r}")

    def _named(self, rows: Any) -> Mapping[str, Any]:
        """Return the columns or tensors by name."""
        names = [entry["name"] for entry in self._known["columns"] or self._known["tensors"]]
        if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # a frame
            named = {str(name): rows[name].to_numpy() for name in rows.columns}
            return named if self.columns or len(names) > 1 else {names[0]: rows.to_numpy()}
        if isinstance(rows, Mapping):
            is_record = not any(isinstance(value, (list, tuple, np.ndarray)) for value in rows.values())
            return {name: [value] for name, value in rows.items()} if is_record else rows
        if isinstance(rows, (list, tuple)) and rows and all(isinstance(row, Mapping) for row in rows):
            seen = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in seen}
        if self.columns:
            return dict(zip(names, _table(rows, len(names)).T, strict=True))
        if len(names) > 1:
            raise ValueError(f"the model takes several tensors: give a dict of {', '.join(names)}")
        return {names[0]: rows}


def _table(rows: Any, width: int) -> Array:
    """Return rows without names as an array of [rows, width]."""
    for row, values in enumerate(rows):
        if not isinstance(values, (list, tuple, np.ndarray)):
            raise ValueError(f"row {row} is {values!r}; a record, or a list of {width} values is expected")
    table = rows if isinstance(rows, np.ndarray) else np.array([list(row) for row in rows], dtype=object)
    if table.ndim != 2 or table.shape[1] != width:
        raise ValueError(f"the array has the shape {list(table.shape)}; [rows, {width}] is expected")
    return table


def _dtype(name: str) -> npt.DTypeLike:
    return object if name == "str" else name


def _quoted(entries: list[dict[str, Any]]) -> str:
    return ", ".join(repr(entry["name"]) for entry in entries)


def _parsed(text: str | None, kind: str) -> str | float | bool | None:
    """Return the value that a text of a CSV file stands for, or the text itself if it stands for none of its type."""
    if not text:
        return None
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if kind != "string":
        for parse in (int, float) if kind in ("integer", "long") else (float,):
            with contextlib.suppress(ValueError):
                return parse(text)
    return text


def _column(column: dict[str, Any], values: Any, missing: str | None) -> Array:
    """Return the values of one column in its type; a missing number is NaN, a missing text is `missing`."""
    name, kind = column["name"], column["type"]
    listed = values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
    if kind == "string":
        texts = [missing if value is None or value != value else value for value in listed]
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"column {name!r}, row {row}: {text!r}; a text is expected")
        return np.array(texts, dtype=object)
    if not isinstance(listed, np.ndarray):
        listed = [np.nan if value is None else value for value in listed]
    array = np.asarray(listed)
    allowed = "b" if kind == "boolean" else "fiu"
    if array.dtype.kind not in allowed:
        unfit = [np.asarray(one).dtype.kind not in allowed for one in listed]
    elif kind in ("integer", "long"):  # 20.0 is one, too
        with np.errstate(invalid="ignore"):
            unfit = array.astype(_COLUMN_TYPES[kind]) != array
    else:
        unfit = []
    if np.any(unfit):
        row = int(np.flatnonzero(unfit)[0])
        value = np.asarray(listed[row]).item()
        raise ValueError(f"column {name!r}, row {row}: {value!r}; a value of the type {kind} is expected")
    return array.astype(_COLUMN_TYPES[kind])


def main(arguments: list[str] | None = None) -> None:
    """Predict the rows of a CSV file with a header, or of a JSON list of records, and print one object per row."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        sys.exit("usage: ROWS.csv or ROWS.json")
    file, model = given[0], Model()
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a byte order mark
            rows = (
                json.load(lines)
                if file.endswith(".json")
                else [model.parse_texts(row) for row in csv.DictReader(lines)]
            )
    except (OSError, ValueError) as error:
        sys.exit(f"Error: the file {file} cannot be read: {getattr(error, 'strerror', None) or error}")
    if not rows:
        sys.exit(f"Error: the file {file} has no rows")
    try:
        outputs = model.outputs(rows)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    try:
        for record in zip(*(array.tolist() for array in outputs.values()), strict=True):
            sys.stdout.write(json.dumps(dict(zip(outputs, record, strict=True))) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`; Python's own flush at the end would say so again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
