"""Tests of the parity of an optimized version: the parity of its base and the loss."""

import pytest
import yaml

from mlflow_deploy_plugin.core.registry.policy import EvaluationPolicy, GatePolicy
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.promote.gate.checks.artifact import check_agreement
from mlflow_deploy_plugin.promote.gate.run import judge
from mlflow_deploy_plugin.wrap.evaluation.agreement import graph_digest
from mlflow_deploy_plugin.wrap.evaluation.dataset import LabelledRows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, load_version
from tests.support.classifiers import labelled, write_classifier
from tests.support.refusals import mentions

ROWS = labelled(500, seed=3)
INPUTS = {name: ROWS[name] for name in ("a", "b")}
POLICY = GatePolicy(skip=("evaluation", "robustness", "budget"))


def loaded(folder):
    version = load_version(folder)
    assert isinstance(version, LoadedOnnx)
    return version


@pytest.mark.parametrize(
    ("weights", "parity", "with_labels", "state", "names"),
    [
        ((4.0, -2.0), "proven", False, "passed", ["models:/toy/1", "proven", "1,000 rows"]),
        ((4.0, -2.0), "proven", True, "passed", ["accuracy"]),
        ((1.0, 2.0), "proven", False, "failed", ["an evaluation dataset"]),
        ((1.0, 2.0), "proven", True, "failed", ["accuracy", "the margin 0.01", "models:/toy/1"]),
        ((4.0, -2.0), "warned", False, "failed", ["models:/toy/1", "the ONNX form", "warned"]),
    ],
)
def test_form_passes_with_its_base_within_the_margin(
    tmp_path, weights, parity, with_labels, state, names
):
    base = loaded(write_classifier(tmp_path / "base", parity=parity))
    form = loaded(optimized(write_classifier(tmp_path / "form", weights, parity="warned"), base))
    rows = LabelledRows(INPUTS, ROWS["label"]) if with_labels else None
    result = check_agreement(form, base, GatePolicy(evaluation=EvaluationPolicy()), rows, INPUTS)
    assert result.state == state
    assert mentions(result.reason, *names)


def test_form_without_rows_fails(tmp_path):
    base = loaded(write_classifier(tmp_path / "base"))
    form = loaded(optimized(write_classifier(tmp_path / "form"), base))
    result = check_agreement(form, base, POLICY, None, None)
    assert result.state == "failed"
    assert mentions(result.reason, "no rows", "models:/toy/1", "dataset")


def optimized(folder, base, where="models:/toy/1"):
    """Write into the MLmodel file of a folder that the folder is a form of the base."""
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["onnxserve"]["optimization"] = {
        "base": where,
        "base_digest": graph_digest(base),
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture
def parity_of(registry, folders, tmp_path):
    """Return the parity check of a form of `toy` 1 from a complete run of the gate."""

    def check(where, base="good", policy=POLICY):
        folder = write_classifier(tmp_path / "form", (4.0, -2.0), parity="warned")
        candidate = resolve(str(optimized(folder, loaded(folders[base]), where)))
        return judge(candidate, None, policy, "a test").checks[0]

    return check


def test_base_is_fetched_from_the_registry(parity_of):
    result = parity_of("models:/toy/1")
    assert result.state == "passed", result.reason
    assert result.figures["rows"] == 400  # The rows are from the reference of the base.


def test_loss_is_measured_on_the_policy_dataset(parity_of, folders):
    evaluation = EvaluationPolicy(dataset=str(folders["holdout"]), target="label", resamples=200)
    judged = GatePolicy(evaluation=evaluation, skip=("robustness", "budget"))
    assert "accuracy 0." in parity_of("models:/toy/1", policy=judged).reason


@pytest.mark.parametrize(
    ("where", "base", "names"),
    [
        ("models:/toy/9", "good", ["models:/toy/9", "compared", "model toy"]),
        ("models:/toy/2", "good", ["models:/toy/2", "compared", "the files"]),
        ("/etc", "good", ["/etc", "compared", "MLflow"]),
    ],
)
def test_missing_or_other_base_fails(parity_of, where, base, names):
    result = parity_of(where, base)
    assert result.state == "failed"
    assert mentions(result.reason, *names)
