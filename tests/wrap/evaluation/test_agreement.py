"""The agreement of a smaller or faster form with its base."""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, ParityError
from mlflow_deploy_plugin.serve.runtime.agreement import EXACT
from mlflow_deploy_plugin.wrap.evaluation.agreement import (
    check_outputs,
    compare_with_base,
    rounding_tolerance,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, load_version
from tests.support.classifiers import labelled, write_classifier, write_regressor
from tests.support.refusals import refused

ROWS = labelled(500, seed=3)
INPUTS = {name: ROWS[name] for name in ("a", "b")}


def loaded(folder):
    version = load_version(folder)
    assert isinstance(version, LoadedOnnx)
    return version


def pair(folder, write, weights):
    """Return a base and a form with other weights."""
    return loaded(write(folder / "base")), loaded(write(folder / "form", weights))


def test_classifiers_are_compared_by_labels(tmp_path):
    base, form = pair(tmp_path, write_classifier, (2.0, -0.8))
    comparison = compare_with_base(base, form, INPUTS)
    label, other = (side.outputs(INPUTS)["label"] for side in (base, form))
    assert comparison.equal == (label == other).mean()
    assert comparison.loss == pytest.approx((label != other).mean())
    assert comparison.loss_of == "labels"
    assert 0 < comparison.mean_difference < comparison.max_difference < 1  # type: ignore[operator]
    same = compare_with_base(base, base, INPUTS, base_outputs=base.outputs(INPUTS))
    assert (same.equal, same.max_difference, same.loss) == (1.0, 0.0, 0.0)


def test_numbers_are_compared_by_their_spread(tmp_path):
    base, form = pair(tmp_path, write_regressor, (2.2, -1.1))
    comparison = compare_with_base(base, form, INPUTS)
    answers = base.outputs(INPUTS)["y"]
    assert comparison.equal is None
    assert comparison.loss_of == "values"
    assert comparison.loss == pytest.approx(0.1 * np.abs(answers).mean() / answers.std())
    truth = compare_with_base(base, form, INPUTS, ROWS["value"])
    assert truth.metric == "rmse"
    assert truth.loss == pytest.approx(
        (truth.form_metric - truth.base_metric) / answers.std(), rel=1e-3
    )


def test_nan_answers_lose_everything(tmp_path):
    base, form = pair(tmp_path, write_regressor, (float("nan"), 1))
    assert compare_with_base(base, form, INPUTS).loss == float("inf")
    assert compare_with_base(base, form, INPUTS, ROWS["value"]).loss == float("inf")


def test_form_with_other_outputs_is_refused(tmp_path):
    base = loaded(write_regressor(tmp_path / "base"))
    form = loaded(write_classifier(tmp_path / "form"))
    with refused(InvalidConfig, "'y'"):
        compare_with_base(base, form, INPUTS)


def test_outputs_may_differ_by_rounding():
    served = {
        "label": np.array(["a", "b"], object),
        "scores": np.array([[1e6, 1e-3], [1.0, np.nan]], np.float32),
    }
    outputs = {
        "label": served["label"].copy(),
        "scores": served["scores"] + np.array([[0, 0.5], [0, 0]], np.float32),
    }
    rounded = rounding_tolerance(1e-5)
    assert check_outputs(served, served, EXACT, "the export") == 0.0
    assert check_outputs(served, outputs, rounded, "the export") == pytest.approx(0.5)
    with refused(ParityError, "the export", "'scores', row 0", "1 of 2 rows"):
        check_outputs(served, outputs, EXACT, "the export")
    with refused(ParityError, "the export", "'scores'", "float32 [1, 2]"):
        check_outputs(served, {**outputs, "scores": outputs["scores"][:1]}, rounded, "the export")
    with refused(ParityError, "the export", "'scores'", "[0]"):
        check_outputs(served, {"label": served["label"]}, rounded, "the export")
    outputs["label"][1] = "c"
    with refused(ParityError, "the export", "'label', row 1"):
        check_outputs(served, outputs, rounded, "the export")
