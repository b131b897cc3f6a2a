"""Formats by the names of files, and files that are written whole or not at all."""

import io
import os
from contextlib import suppress
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.tabular import FileFormat, atomic_file, format_of, open_input, open_output, output_format


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", "csv"), ("A.CSV", "csv"), ("a.ndjson", "jsonl"), ("a.pq", "parquet"), ("a.xlsx", None), ("-", None)],
)
def test_the_ending_says_the_format(name: str, kind: FileFormat | None) -> None:
    assert format_of(name) == kind


def test_an_output_without_an_ending_has_the_format_of_the_input() -> None:
    assert (output_format("out", "jsonl"), output_format("out.csv", "jsonl")) == ("jsonl", "csv")
    with pytest.raises(InvalidConfig, match=r"out.xlsx: .xlsx is none of the endings that are known, .csv .* say -O"):
        output_format("out.xlsx", "jsonl")


def test_a_file_is_replaced_at_the_end_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    path.chmod(0o640)
    with atomic_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", 0o640)
    assert os.listdir(tmp_path) == ["out"]


def test_after_an_error_the_file_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out") as file:
        file.write(b"half of")
        raise ZeroDivisionError
    assert (os.listdir(tmp_path), (tmp_path / "out").read_bytes()) == (["out"], b"before")


def test_a_dash_is_standard_input_and_output_and_another_name_is_said(tmp_path: Path) -> None:
    stdin, stdout = io.BytesIO(b"x"), io.BytesIO()
    with open_input("-", stdin) as source, open_output("-", stdout) as target:
        target.write(source.read())
    assert stdout.getvalue() == b"x"
    with (
        pytest.raises(InvalidConfig, match=r"the file .*/nothing cannot be read"),
        open_input(f"{tmp_path}/nothing", stdin),
    ):
        pass
    with (
        pytest.raises(InvalidConfig, match=r"the file .*/no/out cannot be written"),
        open_output(f"{tmp_path}/no/out", stdout),
    ):
        pass
