"""The wording of errors in files."""

import io
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.tabular.row_files import (
    open_input,
    open_output,
    output_format,
    value_writer,
)
from mlflow_deploy_plugin.core.tabular.streams import RowStream
from tests.support.messages import message_of


def _open(function, name):
    with function(name, io.BytesIO()):  # type: ignore[attr-defined]
        pass


def _read(content, kind):
    list(RowStream(pa.BufferReader(content), kind, {}).blocks(["a"]))


def _write(*rows):
    with value_writer("csv", io.BytesIO(), "prediction") as write:
        write(list(rows))


MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    "an unknown ending": (
        partial(output_format, "out.xlsx", "jsonl"),
        (
            "out.xlsx: .xlsx is not a known ending (.csv .json .jsonl .ndjson .parquet .pq); set "
            "the format with -O"
        ),
    ),
    "a file that does not exist": (
        partial(_open, open_input, "/nowhere/rows.csv"),
        "the file /nowhere/rows.csv cannot be read: No such file or directory",
    ),
    "a folder that does not exist": (
        partial(_open, open_output, "/nowhere/rows.csv"),
        "the file /nowhere/rows.csv cannot be written: the folder /nowhere does not exist",
    ),
    "a document that has no blocks": (
        partial(_read, b"[]", "json"),
        "a json file is one document; csv, jsonl, parquet are read row by row",
    ),
    "several types in a column": (
        partial(_read, b'{"a": 1}\n{"a": "x"}\n', "jsonl"),
        "column 'a' contains values of several types",
    ),
    "rows of different columns": (
        partial(_write, {"a": 1}, {"b": 2}),
        "predictions have different columns: a, and b",
    ),
}


@pytest.mark.parametrize(("cause", "message"), MESSAGES.values(), ids=MESSAGES)
def test_refusal_names_the_file_and_the_expected_form(cause, message):
    assert message_of(cause) == message
