"""Predict with an exported model, using only ONNX Runtime and numpy.

    model = Model("model.onnx")
    model.predict([{"carrier": "UA", "distance": 1400.0}])  # like the model's `predict`
    model.outputs(frame)["probabilities"]                   # any output of the graph

`onnxserve export` copies this file unchanged, so it must not import other packages. The
metadata of the model's file describe the columns or tensors, the graph inputs that they
belong to, and the meaning of the outputs.

    python predict.py ROWS.csv|ROWS.json                    # one JSON object per row
"""

import contextlib
import csv
import json
import os
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads this on import.
import onnxruntime

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
METADATA_KEY = "onnxserve.model"
# the output that marks the rows, and the metadata key of the reason
_REFUSED_ROWS = "onnxserve_refused_rows"
_COLUMN_TYPES = {
    "double": "float64",
    "float": "float32",
    "integer": "int32",
    "long": "int64",
    "boolean": "bool",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class Model:
    """A loaded model, which is thread-safe.

    Args:
        path: the model's file; None for the file next to this module.
        providers: the execution providers of ONNX Runtime.
        threads: the number of threads per call; 0 means one per core.

    Attributes:
        name: the name of the exported model.
        version: the version of the exported model.
        source: the URI in the registry; may be empty.
        classes: the labels in the order of the probability columns; empty for other
            models.
        columns: the input columns in order; empty for a model of tensors.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        threads: int = 0,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        file = path or next(Path(__file__).parent.glob("model.o*"))
        self._session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
        metadata = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if metadata is None:
            raise ValueError(
                f"{file} was not created by `onnxserve export`: its metadata has no {METADATA_KEY}"
            )
        self._described: dict[str, Any] = json.loads(metadata)
        self.name = str(self._described["name"])
        self.version = str(self._described["version"])
        self.source = str(self._described["source"])
        self.classes: list[Any] = self._described["classes"]
        self.columns: list[str] = [column["name"] for column in self._described["columns"]]

    def predict(self, rows: Any) -> Any:
        """Return the predictions of the model: an array whose first axis is the rows,
        or several arrays by output name.

        `rows` are a DataFrame, a dict of columns or tensors, a list of records, a
        record, or an array (the columns in order, or a single tensor). Raises
        ValueError if a column is missing or has values of another type.
        """
        outputs = self.outputs(rows)
        names = self._described["prediction"]
        if len(names) == 1:
            return outputs[names[0]]
        return {name: outputs[name] for name in names}

    def outputs(self, rows: Any) -> Arrays:
        """Return all outputs of the graph by name, for rows in any of the forms of
        `predict`. Raises ValueError for a row that the original model refuses.
        """
        names = [output.name for output in self._session.get_outputs()]
        data = self._named(rows)
        feeds = self._column_feeds(data) if self.columns else self._tensor_feeds(data)
        arrays = self._session.run(names, feeds)
        if _REFUSED_ROWS in names:
            metadata = self._session.get_modelmeta().custom_metadata_map
            refused = arrays.pop(names.index(_REFUSED_ROWS))
            names.remove(_REFUSED_ROWS)
            if np.count_nonzero(refused):
                row = int(np.flatnonzero(refused)[0])
                raise ValueError(f"row {row}: {metadata.get(_REFUSED_ROWS)}")
        outputs = dict(zip(names, arrays, strict=True))
        for name, values in outputs.items():
            if isinstance(values, list):  # A sequence, such as a mapping per row.
                outputs[name] = np.fromiter(values, object)
        return outputs

    def parse_texts(self, row: Mapping[str, str]) -> dict[str, str | float | bool | None]:
        """Parse the strings of a row in a CSV file. An empty string is a missing
        value.
        """
        kinds = {column["name"]: column["type"] for column in self._described["columns"]}
        parsed: dict[str, str | float | bool | None] = {}
        for name, text in row.items():
            if name not in kinds:
                continue
            # A string that is not a value of the column's type is kept.
            parsed[name] = text or None
            if text and kinds[name] == "boolean":
                parsed[name] = _BOOLEANS.get(text.lower(), text)
            elif text and kinds[name] != "string":
                with contextlib.suppress(ValueError):
                    parsed[name] = float(text)
                if kinds[name] in ("integer", "long"):
                    with contextlib.suppress(ValueError):
                        parsed[name] = int(text)
        return parsed

    def _tensor_feeds(self, data: Mapping[str, Any]) -> Arrays:
        """Return the inputs of the graph for tensors by name. Raises ValueError if a
        tensor is missing.
        """
        tensors = self._described["tensors"]
        inputs = self._described["inputs"]
        has_one_tensor = len(tensors) == 1
        if has_one_tensor and len(data) == 1:  # A single tensor may have any name.
            data = {inputs[0]["name"]: next(iter(data.values()))}
        feeds = {}
        for entry in inputs:
            name = entry["name"]
            if name not in data:
                raise ValueError(
                    f"the tensor {name!r} is missing; the model needs {_quoted(tensors)}"
                )
            feeds[name] = np.asarray(data[name], dtype=_dtype(entry["dtype"]))
            label = tensors[0]["name"] if has_one_tensor else name
            self._check(label, feeds[name])
        return feeds

    def _column_feeds(self, data: Mapping[str, Any]) -> Arrays:
        """Return the inputs of the graph, each with one or several columns. Raises
        ValueError if a required column is missing.
        """
        columns = self._described["columns"]
        inputs = self._described["inputs"]
        for column in columns:
            if column["name"] not in data and column["required"]:
                raise ValueError(
                    f"the column {column['name']!r} is missing; the model needs {_quoted(columns)}"
                )
        missing: dict[str, str | None] = {}
        for entry in inputs:
            missing |= dict.fromkeys(entry["columns"], entry["missing"])
        row_count = max((len(values) for values in data.values()), default=0)
        arrays = {}
        for column in columns:
            name = column["name"]
            # An optional column that is not in the data has missing values.
            values = data.get(name, [None] * row_count)
            arrays[name] = _column(column, values, missing.get(name))
            self._check(name, arrays[name])
        feeds = {}
        for entry in inputs:
            parts = [arrays[name].astype(_dtype(entry["dtype"])) for name in entry["columns"]]
            feeds[entry["name"]] = parts[0] if len(entry["shape"]) == 1 else np.stack(parts, axis=1)
        return feeds

    def _check(self, name: str, array: Array) -> None:
        """Raise ValueError for missing numbers, infinite numbers and categories that
        the original model refuses.
        """
        refused = self._described.get("refused", {})
        for kind, test, reason in (
            (
                "missing",
                np.isnan,
                "the number is missing (NaN), but the model does not accept missing values",
            ),
            (
                "infinite",
                np.isinf,
                "the number is infinite, but the model accepts only finite numbers",
            ),
        ):
            if array.dtype.kind == "f" and name in refused.get(kind, ()) and test(array).any():
                row = int(np.argwhere(test(array))[0][0])
                raise ValueError(f"{name!r}, row {row}: {reason}")
        categories = refused.get("categories", {}).get(name)
        if categories is not None:
            inputs = self._described["inputs"]
            missing = [entry["missing"] for entry in inputs if name in entry["columns"]]
            accepted = {*categories, *missing}
            for row, value in enumerate(array.tolist()):
                if value not in accepted:
                    raise ValueError(
                        f"column {name!r}, row {row}: {value!r} is not a category of the model"
                    )

    def _named(self, rows: Any) -> Mapping[str, Any]:
        """Return the columns or tensors by name."""
        names = [
            entry["name"] for entry in self._described["columns"] or self._described["tensors"]
        ]
        if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # a DataFrame
            columns = {str(name): rows[name].to_numpy() for name in rows.columns}
            if self.columns or len(names) > 1:
                return columns
            return {names[0]: rows.to_numpy()}
        if isinstance(rows, Mapping):
            is_record = not any(
                isinstance(value, (list, tuple, np.ndarray)) for value in rows.values()
            )
            if is_record:
                return {name: [value] for name, value in rows.items()}
            return rows
        is_list = isinstance(rows, (list, tuple))
        if is_list and rows and all(isinstance(row, Mapping) for row in rows):
            columns = {}
            for name in dict.fromkeys(chain.from_iterable(rows)):
                columns[name] = [row.get(name) for row in rows]
            return columns
        if self.columns:
            for row, values in enumerate(rows):
                if not isinstance(values, (list, tuple, np.ndarray)):
                    raise ValueError(
                        f"row {row} is {values!r}; expected a record or a list of {len(names)} "
                        "values"
                    )
            if isinstance(rows, np.ndarray):
                table = rows
            else:
                table = np.array([list(row) for row in rows], dtype=object)
            if table.ndim != 2 or table.shape[1] != len(names):
                raise ValueError(
                    f"the array has the shape {list(table.shape)}; expected [rows, {len(names)}]"
                )
            return dict(zip(names, table.T, strict=True))
        if len(names) > 1:
            raise ValueError(f"the model has several tensors: pass a dict of {', '.join(names)}")
        return {names[0]: rows}


def _dtype(name: str) -> npt.DTypeLike:
    return object if name == "str" else name


def _quoted(entries: list[dict[str, Any]]) -> str:
    return ", ".join(repr(entry["name"]) for entry in entries)


def _column(column: dict[str, Any], values: Any, missing: str | None) -> Array:
    """Return the values of a column with its type. A missing number is NaN, and a
    missing string is `missing`. Raises ValueError for a value of another type, and for
    a missing string if `missing` is None.
    """
    name = column["name"]
    kind = column["type"]
    listed = values
    if isinstance(values, np.ndarray) and values.dtype == object:
        listed = values.tolist()
    if kind == "string":
        texts = []
        for row, value in enumerate(listed):
            text = missing if value is None or value != value else value
            if not isinstance(text, str):
                raise ValueError(f"column {name!r}, row {row}: {text!r}; expected a string")
            texts.append(text)
        return np.array(texts, dtype=object)
    if not isinstance(listed, np.ndarray):
        listed = list(listed)
        for row, value in enumerate(listed):
            if value is None:
                listed[row] = np.nan
    array = np.asarray(listed)
    allowed = "b" if kind == "boolean" else "fiu"
    is_unfit: Any = False
    if array.dtype.kind not in allowed:
        is_unfit = [np.asarray(item).dtype.kind not in allowed for item in listed]
    elif kind in ("integer", "long"):  # A whole number such as 20.0 is accepted.
        with np.errstate(invalid="ignore"):
            is_unfit = array.astype(_COLUMN_TYPES[kind]) != array
    if np.any(is_unfit):
        row = int(np.flatnonzero(is_unfit)[0])
        value = np.asarray(listed[row]).item()
        raise ValueError(
            f"column {name!r}, row {row}: {value!r}; expected a value of the type {kind}"
        )
    return array.astype(_COLUMN_TYPES[kind])


def main(arguments: list[str] | None = None) -> None:
    """Predict rows from a CSV file with a header or a JSON list of records, and print
    one object per row.
    """
    command_line = sys.argv[1:] if arguments is None else arguments
    if len(command_line) != 1:
        sys.exit("usage: ROWS.csv or ROWS.json")
    file = command_line[0]
    model = Model()
    try:
        # Spreadsheets may write a byte order mark.
        with open(file, newline="", encoding="utf-8-sig") as lines:
            if file.endswith(".json"):
                rows = json.load(lines)
            else:
                rows = [model.parse_texts(row) for row in csv.DictReader(lines)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(f"Error: the file {file} cannot be read: {reason}")
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
    # The reader of the pipe, such as `head`, has ended. Avoid a second error at exit.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
