"""Messages of MLflow and of models come to clients in one line, short, and without paths."""

from mlflow_deploy_plugin.pyfunc.refusal import clean_message, one_line


def test_an_exception_is_named_in_one_line_without_paths() -> None:
    assert one_line(KeyError("no such\nthing in /usr/lib/python3/thing.py")) == "KeyError: 'no such\\nthing in …'"
    assert one_line(MemoryError()) == "MemoryError"


def test_what_mlflow_appends_is_left_out() -> None:
    text = "Failed to predict data '[1]'. \nError: the column is missing\nInput: 1,2,3"
    assert clean_message(text) == "the column is missing"


def test_a_long_message_is_cut() -> None:
    assert clean_message("x" * 10_000) == "x" * 499 + "…"
