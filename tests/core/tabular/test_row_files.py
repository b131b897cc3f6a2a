"""File formats by file name, and files that are written completely or not at all."""

import io
import os
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.tabular.row_files import (
    atomic_file,
    format_of,
    json_lines,
    open_input,
    open_output,
    open_parquet,
    output_format,
    unfinished_stem,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("A.CSV", "csv"),
        ("a.ndjson", "jsonl"),
        ("a.pq", "parquet"),
        ("a.xlsx", None),
        ("-", None),
    ],
)
def test_the_ending_says_the_format(name, kind):
    assert format_of(name) == kind


def test_an_output_without_an_ending_has_the_format_of_the_input():
    assert output_format("out", "jsonl") == "jsonl"
    assert output_format("out.csv", "jsonl") == "csv"
    with pytest.raises(InvalidConfig, match=r"out\.xlsx.*\.csv .*-O"):
        output_format("out.xlsx", "jsonl")


def test_a_file_is_replaced_at_the_end_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with atomic_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600, (
            "nor may others read what is written meanwhile"
        )
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_an_unfinished_file_is_known_by_the_name_that_it_will_have(tmp_path):
    with atomic_file(tmp_path / "b.csv") as file:
        file.write(b"rows")
        (unfinished,) = os.listdir(tmp_path)
    assert unfinished.rpartition(".")[0] == unfinished_stem("b.csv")
    assert os.listdir(tmp_path) == ["b.csv"]


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    (tmp_path / "out").write_bytes(b"before")
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out") as file:
        file.write(b"half of")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"


def test_dash_is_standard_input_or_output_and_a_bad_path_is_named_in_the_error(tmp_path):
    stdin = io.BytesIO(b"x")
    stdout = io.BytesIO()
    with open_input("-", stdin) as source, open_output("-", stdout) as target:
        target.write(source.read())
    assert stdout.getvalue() == b"x"
    with (
        pytest.raises(InvalidConfig, match="/nothing cannot be"),
        open_input(f"{tmp_path}/nothing", stdin),
    ):
        pass
    with (
        pytest.raises(InvalidConfig, match=r"/no/out .*: the folder .*/no does not exist"),
        open_output(f"{tmp_path}/no/out", stdout),
    ):
        pass


def test_a_new_file_follows_the_umask_which_is_never_another(tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.touch()
    # With another umask, all threads would create files for everybody.
    monkeypatch.setattr("os.umask", None)
    with atomic_file(tmp_path / "new") as file:
        file.write(b"x")
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode


def test_blank_lines_of_json_lines_are_counted_and_left_out():
    assert list(json_lines(io.BytesIO(b'{"a": 1}\n \n2'))) == [(1, b'{"a": 1}\n', 9), (3, b"2", 12)]


def test_parquet_of_a_stream_is_read_whole(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert open_parquet(Stream((tmp_path / "t.parquet").read_bytes())).read().num_rows == 2
