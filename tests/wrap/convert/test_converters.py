"""Converters of other distributions: the example of docs/extend.md is installed by its
metadata.
"""

import logging
import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, ParityError
from mlflow_deploy_plugin.wrap.flavor.registered import wrap_registered
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.raising import Panic, raise_it
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused

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
WIND = """
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import FunctionTransformer

class Speed(TransformerMixin, BaseEstimator):
    fails = False

    def fit(self, rows, labels=None):
        return self

    def transform(self, rows):
        return np.sqrt(np.abs(rows))

def stand_in(step):
    if step.fails:
        raise KeyError("speed")
    return FunctionTransformer(step.transform)

def read(path, rows):
    return f"Wind {path.read_text()}", {"signature": infer_signature(rows, rows)}
"""


@pytest.fixture(scope="module", autouse=True)
def installation_is_read_once():
    """These tests install packages."""


@pytest.fixture
def score_card(tmp_path, monkeypatch):
    """Add the example's distribution to the path, and two converters that cannot be
    imported or fail.
    """
    model, converter = re.findall(
        r"^`(score_\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
    )
    entry = re.findall(r'score-card = "(.*?)"', PAGE)[0]
    for name, code in (model, converter, ("unlucky.py", BROKEN), ("wind.py", WIND)):
        (tmp_path / name).write_text(code)
    metadata = tmp_path / "score_cards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: score-cards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[onnxserve.converters]\n"
        "absent = no_such_module\n"
        f"score-card = {entry}\n"
        "unlucky = unlucky\n"
        "[onnxserve.libraries]\n"
        "wind = wind\n"
        "[onnxserve.files]\n"
        "onnx = wind:read\n"
        "wind = wind:read\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield import_module("score_card").ScoreCard({"income": -0.5, "age": 2}, 3)
    for name in ("score_card", "score_card_onnx", "unlucky", "wind"):
        sys.modules.pop(name, None)


def test_registered_converter_is_found(score_card, caplog):
    with caplog.at_level(logging.ERROR):
        wrapped = wrap(score_card, ROWS)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.framework == "score-card"
    assert [record.getMessage() for record in caplog.records] == [
        "the converter absent = no_such_module (score-cards 1.0) cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    ]


@pytest.mark.usefixtures("score_card")
def test_step_of_registered_library_has_a_stand_in():
    rows = np.random.default_rng(0).normal(size=(50, 2))
    model = make_pipeline(import_module("wind").Speed(), LinearRegression()).fit(rows, rows[:, 0])
    assert wrap(model, rows).report.state == "proven"
    model[0].fails = True
    with refused(ConversionError, "wind (score-cards 1.0)", "'speed'"):
        wrap(model, rows)


@pytest.mark.usefixtures("score_card")
def test_file_of_registered_ending_is_read(tmp_path):
    path = tmp_path / "a.WIND"
    path.write_text("farm")
    wrapped = wrap_registered(str(path), "wind", data=ROWS, dry_run=True)
    assert (wrapped.model, wrapped.is_pyfunc) == ("Wind farm", True)
    assert wrapped.prediction == tuple(ROWS)
    with refused(ConversionError, "ONNX"):  # Our own endings cannot be replaced.
        wrap_registered(str(path.rename(tmp_path / "a.onnx")), "wind", dry_run=True)


@pytest.mark.parametrize(
    ("panics", "words"),
    [
        (False, ("unlucky (score-cards 1.0)", "'weights'")),
        (True, ("Unlucky", "a regular expression failed")),
    ],
)
def test_failing_converter_is_named(panics, words, score_card):
    unlucky = type("Unlucky", (), {"panics": panics})()
    with refused(ConversionError, *words):
        wrap(unlucky, ROWS)


def test_panicking_original_is_an_error(score_card, monkeypatch):
    panic = Panic("a regular expression failed")
    monkeypatch.setattr(type(score_card), "predict", lambda self, rows: raise_it(panic))
    with refused(InvalidConfig, "input_example", "Panic", "a regular expression failed"):
        wrap(score_card, ROWS)


def test_converter_of_wrong_answers_is_refused(score_card, monkeypatch):
    monkeypatch.setattr(type(score_card), "predict", lambda self, rows: rows["age"].to_numpy())
    with refused(ParityError, "does not match the original"):
        wrap(score_card, ROWS)


def test_forecaster_is_not_supported():
    class Arima(BaseEstimator):  # type: ignore[misc]
        __module__ = "pmdarima.arima"

    with refused(ConversionError, "pmdarima.arima", "framework is not supported"):
        wrap(Arima(), ROWS)
