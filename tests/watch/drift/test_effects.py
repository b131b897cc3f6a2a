"""The effect of a column on the predictions of a version."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.watch.drift.effects import Effect, check_unit, measure_effect, with_effect
from mlflow_deploy_plugin.watch.result import Finding
from tests.support.classifiers import write_classifier, write_regressor
from tests.support.models import graph_tensor, numbers_section, write_model
from tests.support.refusals import mentions, refused

ROWS = 4_000


def table(seed, **columns):
    """Return rows with the independent columns a and b, unless `columns` has them."""
    rng = np.random.default_rng(seed)
    return pa.table({"a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS), **columns})


def normal(seed, mean=0.0, deviation=1.0):
    return np.random.default_rng(seed).normal(mean, deviation, ROWS)


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """The model 2 a - b."""
    return OnnxModel.load(write_regressor(tmp_path_factory.mktemp("regressor")))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The probability of 1 is the sigmoid of 2 a - b."""
    return OnnxModel.load(write_classifier(tmp_path_factory.mktemp("classifier")))


def effect_of(model, window):
    effect = measure_effect(model, table(1), window, "a", ROWS)
    assert effect is not None
    return effect


def test_effect_of_a_shift(regressor):
    window = table(2, a=normal(2, mean=1.5), b=normal(3, mean=7))

    effect = effect_of(regressor, window)

    assert effect.effect == pytest.approx(3.0, abs=0.1)
    assert effect.effect_size == pytest.approx(3.0, abs=0.1)
    assert effect.effect_unit == "prediction"
    assert effect.changed_classes is None
    assert effect == effect_of(regressor, window)


def test_effect_of_a_wider_spread(regressor):
    effect = effect_of(regressor, table(2, a=normal(2, deviation=2)))

    assert effect.effect == pytest.approx(0, abs=0.15)
    assert effect.effect_size == pytest.approx(2 * np.sqrt(2 / np.pi), abs=0.1)


def test_calm_related_column_has_no_effect(regressor):
    """Values in another order would change 2 a - 2 a, which is 0 in all rows."""
    a = normal(4)

    assert effect_of(regressor, table(4, a=a, b=2 * a)).effect_size < 0.15


def test_effect_on_a_classifier(classifier):
    effect = effect_of(classifier, table(2, a=normal(2, mean=1)))

    assert effect.effect_unit == "probability of 1"
    assert effect.effect == pytest.approx(0.29, abs=0.04)
    assert effect.changed_classes == pytest.approx(0.32, abs=0.05)


def test_effect_of_missing_values(tmp_path):
    """The model takes 5 for a missing value."""
    model = OnnxModel.load(
        write_classifier(
            tmp_path,
            extra="m = IsNaN(x) five = Constant <value = double[1] {5.0}> () z = Where(m, five, x)",
        )
    )
    values = normal(2)
    values[: ROWS // 4] = np.nan

    with_missing = effect_of(model, table(2, a=values))
    all_missing = effect_of(model, table(2, a=np.full(ROWS, np.nan)))

    assert with_missing.changed_classes == pytest.approx(0.25 / 2, abs=0.03)
    assert all_missing.effect == pytest.approx(0.5, abs=0.03)


def test_effect_of_a_new_category(tmp_path):
    """The prediction is 10 for UA, and 0 for other carriers."""
    graph = """carriers (string[N,1] carrier) => (float[N,1] y) {
      y = ai.onnx.ml.LabelEncoder <keys_strings = ["UA"], values_floats = [10.0],
                                   default_float = 0.0> (carrier)
    }"""
    section = numbers_section(graph_tensor("carrier", "str", -1, 1, columns=["carrier"]))
    signature = [{"name": "carrier", "type": "string", "required": True}]
    model = OnnxModel.load(write_model(tmp_path, graph, signature, section))
    rng = np.random.default_rng(0)
    reference = pa.table({"carrier": rng.choice(["UA", "AA"], ROWS)})
    carriers = rng.choice(["UA", "AA", "XX"], ROWS, p=[0.3, 0.5, 0.2]).tolist()
    window = pa.table({"carrier": ["a long name" * 1_000_000, *carriers[1:]]})

    effect = measure_effect(model, reference, window, "carrier", ROWS)

    assert effect is not None
    assert effect.effect == pytest.approx(-2, abs=0.3)
    assert effect.effect_size == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize(
    "window",
    [
        table(2).drop_columns(["a"]),
        table(2).slice(0, 0),
        table(2, a=["1.0"] * ROWS),
        table(2, a=[[1.0]] * ROWS),
        table(2).drop_columns(["b"]),
        table(2, a=np.where(np.arange(ROWS) < 100, np.nan, 0.0)),
    ],
    ids=["no column", "no rows", "texts", "lists", "no other column", "missing values"],
)
def test_unpredictable_rows_have_no_effect(regressor, window):
    assert measure_effect(regressor, table(1), window, "a", ROWS) is None


def test_effect_on_several_predictions_is_the_largest(tmp_path):
    """The model returns a and b."""
    graph = "same (double[N,2] x) => (double[N,2] y) { y = Identity(x) }"
    section = numbers_section(
        graph_tensor("x", "float64", -1, 2, columns=["a", "b"]), dtype="float64", shape=(2,)
    )
    signature = [{"name": name, "type": "double", "required": True} for name in ("a", "b")]
    model = OnnxModel.load(write_model(tmp_path, graph, signature, section))

    effect = effect_of(model, table(2, a=normal(2, mean=3)))

    assert effect.effect_unit == "prediction of 0"
    assert effect.effect == pytest.approx(3, abs=0.1)


def drifted(check="distribution", change=""):
    return Finding(
        "a",
        check,
        "drift",
        "far away",
        value=9.0,
        threshold=5.0,
        change=change,
        since="2013-04-01T00:00:00+00:00",
        since_end="2013-04-02T00:00:00+00:00",
        in_a_row=2,
    )


def test_small_effect_raises_no_alarm():
    effect = Effect(-0.01, 0.01, "probability of 1", 0.03)

    finding = with_effect(drifted(), effect, min_effect=0.02)

    assert finding.state == "no drift"
    assert (finding.value, finding.threshold) == (9.0, 5.0)
    assert (finding.since, finding.in_a_row) == ("", 0)
    assert mentions(finding.reason, "0.01", "min_effect 0.02", "far away")


@pytest.mark.parametrize(
    ("check", "min_effect", "effect"),
    [
        ("distribution", None, Effect(0.0, 0.0, "prediction")),
        ("distribution", 0.02, Effect(0.0, 0.02, "prediction")),
        ("distribution", 0.02, None),
        ("type", 0.02, Effect(0.0, 0.0, "prediction")),
        ("presence", 0.02, Effect(0.0, 0.0, "prediction")),
    ],
)
def test_large_or_unknown_effect_remains_an_alarm(check, min_effect, effect):
    finding = with_effect(drifted(check), effect, min_effect)

    assert finding.is_alarm
    assert finding.in_a_row == 2


def test_unsuitable_unit_is_refused(tmp_path):
    classifier = read_artifact(write_classifier(tmp_path / "classifier"))
    regressor = read_artifact(write_regressor(tmp_path / "regressor"))
    undescribed = read_artifact(write_model(tmp_path / "undescribed"))
    labels = tuple(output for output in classifier.outputs if output.role == "label")

    check_unit(classifier, 0.5)
    check_unit(regressor, 20)
    check_unit(undescribed, 20)
    with refused(InvalidConfig, "min_effect 20", "probability", "below 1"):
        check_unit(classifier, 20)
    with refused(InvalidRequest, "labels"):
        check_unit(replace(classifier, outputs=labels), 0.02)
    with refused(InvalidConfig, "ONNX"):
        check_unit(replace(classifier, flavor="python_function"), 0.02)
