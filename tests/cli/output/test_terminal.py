"""Rows in columns, and text that a terminal only prints."""

from mlflow_deploy_plugin.cli.output.terminal import align_columns, printable


def test_a_column_is_as_wide_as_its_widest_cell_and_lines_end_without_spaces() -> None:
    rows = [("NAME", "STATE"), ("flights", ""), ("x", "running")]
    assert list(align_columns(rows)) == ["NAME     STATE", "flights", "x        running"]


def test_control_characters_become_spaces() -> None:
    assert printable("a\x1b[31mb\nc\u202ed") == "a [31mb c d"
