"""Converters of other distributions: the example of docs/extend.md is installed by its
metadata.
"""

import logging
import re
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from sklearn.base import BaseEstimator

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.raising import Panic, raise_it
from tests.support.random_rows import normal_rows

PAGE = (Path(__file__).parents[3] / "docs" / "extend.md").read_text()
ROWS = pd.DataFrame(normal_rows(50, 3), columns=["age", "unused", "income"])
BROKEN = """
def matches(model):
    return type(model).__name__ == "Unlucky"

def convert(model, example, **options):
    if model.panics:
        raise PanicException("a regular expression failed")
    raise KeyError("weights")


class PanicException(BaseException):
    pass
"""


@pytest.fixture
def score_card(tmp_path, monkeypatch):
    """Add the example's distribution to the path, and two converters that cannot be
    imported or fail.
    """
    model, converter = re.findall(
        r"^`(score_\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
    )
    entry = re.findall(r"^score-card = \"(.*)\"$", PAGE, re.MULTILINE)[0]
    for name, code in (model, converter, ("unlucky.py", BROKEN)):
        (tmp_path / name).write_text(code)
    metadata = tmp_path / "score_cards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: score-cards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[onnxserve.converters]\n"
        "absent = no_such_module\n"
        f"score-card = {entry}\n"
        "unlucky = unlucky\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("score_card").ScoreCard({"income": -0.5, "age": 2}, 3)
    for name in ("score_card", "score_card_onnx", "unlucky"):
        sys.modules.pop(name, None)


def test_a_registered_converter_is_found_and_its_graph_is_proven(score_card, caplog):
    with caplog.at_level(logging.ERROR):
        wrapped = wrap(score_card, ROWS)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.framework == "score-card"
    assert [record.getMessage() for record in caplog.records] == [
        "the converter absent = no_such_module (score-cards 1.0) cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    ]


def test_a_converter_that_fails_is_named(score_card):
    unlucky = type("Unlucky", (), {"panics": False})()
    with pytest.raises(ConversionError, match=r"unlucky \(score-cards 1\.0\).*'weights'"):
        wrap(unlucky, ROWS)


def test_a_converter_that_panics_leaves_the_model_without_an_onnx_form(score_card):
    unlucky = type("Unlucky", (), {"panics": True})()
    with pytest.raises(
        ConversionError, match=r"Unlucky cannot be converted to ONNX: .*a regular expression failed"
    ):
        wrap(unlucky, ROWS)


def test_an_original_that_panics_for_the_example_is_an_error(score_card, monkeypatch):
    monkeypatch.setattr(
        type(score_card),
        "predict",
        lambda self, rows: raise_it(Panic("a regular expression failed")),
    )
    with pytest.raises(
        InvalidConfig,
        match="input_example: the model fails for the rows: Panic: a regular expression",
    ):
        wrap(score_card, ROWS)


def test_a_converter_whose_graph_answers_otherwise_is_refused(score_card, monkeypatch):
    monkeypatch.setattr(type(score_card), "predict", lambda self, rows: rows["age"].to_numpy())
    with pytest.raises(Exception, match="does not match the original"):
        wrap(score_card, ROWS)


def test_a_forecaster_that_inherits_from_scikit_learn_is_none_of_its_models():
    class Arima(BaseEstimator):  # type: ignore[misc]
        __module__ = "pmdarima.arima"

    with pytest.raises(ConversionError, match=r"pmdarima\.arima.* framework is not supported"):
        wrap(Arima(), ROWS)
