import re
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.checks.artifact import check_parity, check_signature
from mlflow_deploy_plugin.serve.runtime.artifact import (
    Artifact,
    Column,
    Output,
    Tensor,
    read_artifact,
)
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from tests.support.classifiers import write_classifier
from tests.support.refusals import mentions


@pytest.mark.parametrize(
    ("state", "wanted", "verdict"),
    [
        ("proven", "proven", "passed"),
        ("warned", "proven", "failed"),
        ("no-original", "proven", "failed"),
        ("warned", "warned", "passed"),
        ("no-original", "warned", "failed"),
        ("no-original", "any", "passed"),
    ],
)
def test_policy_sets_the_required_parity(state, wanted, verdict, tmp_path):
    artifact = read_artifact(write_classifier(tmp_path / "model", parity=state))
    result = check_parity(artifact, GatePolicy(parity=wanted))
    assert result.state == verdict
    assert state in result.reason
    assert mentions(result.reason, "the policy") == (verdict == "failed")


def test_parity_is_skipped_without_onnx_form(tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: json}}")
    result = check_parity(read_served_artifact(tmp_path), GatePolicy())
    assert result.state == "skipped"
    assert result.reason == "the version has no ONNX form, so the original model predicts"


NAME = "models:/m/1"
SERVED = Artifact(
    folder=Path("x"),
    onnx_file=Path("x"),
    flavor="onnxserve",
    mlflow_version="",
    model_id="",
    run_id="",
    columns=(Column("a", "long"), Column("b", "double"), Column("c", "string", required=False)),
    outputs=(
        Output("label", "int64", (-1,), "label"),
        Output("p", "float32", (-1, 2), "probabilities"),
    ),
    prediction=("label",),
    classes=(0, 1),
)
A, B, C = SERVED.columns


def columns(*given):
    return replace(SERVED, columns=given)


@pytest.mark.parametrize(
    ("candidate", "state", "said"),
    [
        (SERVED, "passed", "the same columns and types"),
        (columns(A, C), "passed", r"b \(double\) removed"),
        (columns(A, B, C, Column("d", "double")), "failed", r"d \(double\) added"),
        (
            columns(A, B, C, Column("d", "double", required=False)),
            "passed",
            r"d \(double, optional\) added",
        ),
        (columns(Column("a", "double"), B, C), "passed", "a retyped from long to double"),
        (columns(Column("a", "integer"), B, C), "failed", "a retyped from long to integer"),
        (columns(Column("a", "string"), B, C), "failed", "a retyped from long to string"),
        (columns(A, Column("b", "float"), C), "passed", "b retyped from double to float"),
        (columns(A, B, Column("c", "string")), "failed", "c required from optional to required"),
        (
            columns(Column("a", "long", required=False), B, C),
            "passed",
            "a optional from required to optional",
        ),
        (columns(B, A, C), "passed", "another order, which affects rows without names"),
        (
            replace(SERVED, columns=(), tensors=(Tensor("", "float32", (-1, 3)),)),
            "failed",
            "from columns to tensors",
        ),
        (
            replace(SERVED, prediction=("p",)),
            "failed",
            r"from whole numbers to numbers \[2\] per row",
        ),
        (
            replace(SERVED, classes=(0, 1, 2)),
            "passed",
            "the classes reclassed from 0, 1 to 0, 1, 2",
        ),
        (replace(SERVED, undescribed="objects"), "skipped", "the new version has no signature"),
    ],
)
def test_only_breaking_signature_changes_fail(candidate, state, said):
    result = check_signature(candidate, SERVED, NAME)
    assert result.state == state
    assert re.search(said, result.reason), result.reason


def test_signature_check_needs_a_served_signature():
    result = check_signature(SERVED, replace(SERVED, undescribed="objects"), NAME)
    assert result.state == "skipped"
    assert result.reason.startswith(f"{NAME} has no signature")


def tensors(*given):
    return replace(SERVED, columns=(), tensors=given)


@pytest.mark.parametrize(
    ("new", "state"),
    [
        (Tensor("image", "float32", (-1, 8, 8)), "passed"),
        (Tensor("", "float32", (-1, 8, 8)), "passed"),
        (Tensor("image", "float32", (-1, -1, -1)), "passed"),
        (Tensor("image", "float32", (-1, 9, 9)), "failed"),
        (Tensor("image", "float64", (-1, 8, 8)), "failed"),
        (Tensor("picture", "float32", (-1, 8, 8)), "failed"),
    ],
)
def test_tensors_compare_by_name_type_and_shape(new, state):
    assert (
        check_signature(tensors(new), tensors(Tensor("image", "float32", (-1, 8, 8))), NAME).state
        == state
    )


def test_table_has_every_change():
    result = check_signature(columns(A, Column("d", "long")), SERVED, NAME)
    assert result.table is not None
    lines = {(line[0], line[1], line[4]) for line in result.table.lines}
    assert lines == {("removed", "b", ""), ("removed", "c", ""), ("added", "d", "breaks callers")}
    assert result.figures == {"changes": 3, "breaking": 1}


def test_changes_are_in_column_order():
    letters = tuple("hgfedcba")
    result = check_signature(
        columns(A), columns(A, *(Column(name, "double") for name in letters)), NAME
    )
    assert result.table is not None
    assert tuple(line[1] for line in result.table.lines) == letters
