"""Tests of `onnxserve batch`."""

import re

import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.commands import said
from tests.support.models import columns, write_model
from tests.support.refusals import mentions


def batch(*arguments):
    return CliRunner().invoke(main, ["batch", *arguments])


@pytest.mark.long
def test_a_file_is_predicted_and_the_rest_is_one_line(tmp_path):
    model = write_model(tmp_path / "same", signature=columns(x="float"))
    (tmp_path / "rows.csv").write_text("id,x\na,1\nb,oops\nc,3\n")
    arguments = [str(model), "-i", str(tmp_path / "rows.csv"), "--keep", "id", "--workers", "1"]

    failed = batch(*arguments, "--folder", str(tmp_path / "failed"))
    skipped = batch(*arguments, "--folder", str(tmp_path / "out"), "--on-error", "skip-row")
    left_out = batch(*arguments, "--folder", str(tmp_path / "none"), "--on-error", "skip-part")

    assert mentions(said(failed), "rows.csv", "row 1", "'x'", "'oops'")
    assert skipped.exit_code == 0
    assert skipped.stdout.startswith("2 predictions of same in ")
    assert mentions(skipped.stderr, "1 bad rows", f"{tmp_path / 'out'}/_rejected")
    assert (tmp_path / "out" / "rows.csv").read_text() == '"id","y"\n"a",1\n"c",3\n'
    assert left_out.exit_code == 1
    assert left_out.stderr.count("skipped: rows.csv: row 1") == 1


def test_a_column_that_is_kept_twice_is_refused(tmp_path):
    result = batch("x", "-i", "in", "--folder", "out", "--keep", "id, id")

    assert result.exit_code == 2
    assert result.stderr.endswith("Error: --keep id, id: a column is repeated\n")


def test_progress_is_printed_in_plain_lines_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.predict._LINE_SECONDS", 0)
    model = write_model(tmp_path / "same", signature=columns(x="float"))
    (tmp_path / "rows.csv").write_text("x\n" + "1\n" * 1000)

    result = batch(
        str(model),
        "-i",
        str(tmp_path / "rows.csv"),
        "--folder",
        str(tmp_path / "out"),
        "--workers",
        "1",
    )

    lines = result.stderr.splitlines()
    assert all(
        re.fullmatch(r"[\d,]+ rows, [\d,]+ rows/s, [01] of 1 parts(, about [\d:]+ left)?", line)
        for line in lines
    )
    assert re.fullmatch(r"1,000 rows, [\d,]+ rows/s, 1 of 1 parts, about 0:00:00 left", lines[-1])
