import re
from datetime import UTC, datetime

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import CodeRefused, InvalidConfig
from mlflow_deploy_plugin.core.registry.policy import (
    EvaluationPolicy,
    GatePolicy,
    Permissions,
    parse_policy,
)
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.signatures import Signer
from mlflow_deploy_plugin.promote.gate.run import judge
from mlflow_deploy_plugin.wrap.flavor.signing import sign_version
from tests.support.classifiers import labelled, write_classifier, write_rows
from tests.support.keypairs import write_key
from tests.support.models import graph_tensor, tensor_column, write_model
from tests.support.refusals import mentions, refused

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def policy(folders):
    evaluation = EvaluationPolicy(dataset=str(folders["holdout"]), target="label", resamples=200)
    return GatePolicy(evaluation=evaluation, skip=("budget",))


def judged(candidate, current, policy):
    progress = []
    verdict = judge(candidate, current, policy, "a test", progress.append, clock=lambda: NOON)
    return verdict, {check.name: check for check in verdict.checks}, progress


def test_equally_good_version_passes_every_check(version, policy):
    verdict, checks, progress = judged(version("equal"), version("good"), policy)
    states = {name: check.state for name, check in checks.items()}
    assert states == {
        "parity": "passed",
        "signature": "passed",
        "evaluation": "passed",
        "robustness": "passed",
        "budget": "skipped",
    }
    assert verdict.passed
    assert verdict.at == NOON
    assert verdict.reason.startswith(
        "checked: parity, signature, evaluation, robustness; not checked: budget: the policy"
    )
    assert progress == [
        "fetching version  and version ",
        "checking signature",
        "checking evaluation",
        "checking robustness",
    ]
    assert "noise_loss" in checks["robustness"].figures


def test_policy_can_require_a_signature(version, policy, tmp_path):
    keys = write_key(tmp_path)
    signer = keys.public.read_text()
    policy = policy.model_copy(update={"signer": signer})
    _, checks, _ = judged(version("equal"), None, policy)
    assert checks["signed"].state == "failed"
    assert mentions(checks["signed"].reason, "model.sig", "onnxserve sign")

    sign_version(version("equal").source, Signer(str(keys.key)))
    _, checks, _ = judged(version("equal"), None, policy)
    assert checks["signed"].state == "passed"


def test_worse_version_fails_with_figures(version, policy):
    verdict, checks, _ = judged(version("worse"), version("good"), policy)
    assert verdict.state == "failed"
    assert verdict.reason.startswith(
        "evaluation: worse by more than the margin of 0.0100; accuracy 0."
    )
    assert checks["evaluation"].figures["difference"] < -0.3
    assert checks["robustness"].state == "passed"


def test_version_is_judged_alone_without_a_served_one(version, policy):
    verdict, checks, _ = judged(version("worse"), None, policy)
    assert verdict.passed
    assert verdict.against == ""
    assert mentions(checks["signature"].reason, "no version")


def test_reference_is_disturbed_without_dataset(version):
    _, checks, _ = judged(version("equal"), version("good"), GatePolicy(skip=("budget",)))
    assert checks["evaluation"].state == "skipped"
    assert checks["evaluation"].reason == "the policy has no dataset"
    assert checks["robustness"].figures["rows"] == 400


def test_version_without_rows_uses_served_or_blank_rows(version):
    policy = parse_policy("skip: [evaluation, budget]\nparity: any", "it")
    _, checks, _ = judged(version("unproven"), version("good"), policy)
    assert checks["robustness"].figures["rows"] == 400

    _, checks, _ = judged(
        version("unproven"), None, parse_policy("skip: [evaluation]\nbudget: {batch: 8}", "it")
    )
    assert checks["robustness"].state == "skipped"
    assert checks["budget"].figures["row_p50_ms_candidate"] > 0


@pytest.mark.long
def test_costs_are_compared_with_the_served_version(version):
    policy = parse_policy("skip: [signature, evaluation, robustness]\nbudget: {batch: 8}", "it")
    _, checks, _ = judged(version("equal"), version("good"), policy)
    assert checks["budget"].figures["row_p50_ms_ratio"] > 0
    assert "memory_mb_ratio" in checks["budget"].figures


def test_unloadable_version_fails_unless_it_is_served(version, policy, tmp_path):
    folder = write_classifier(tmp_path / "broken")
    (folder / "model.onnx").write_bytes(b"not a graph")
    verdict, checks, _ = judged(resolve(str(folder)), version("good"), policy)
    assert list(checks) == ["load"]
    assert verdict.reason.startswith("load: ONNX Runtime cannot load model.onnx")

    verdict, checks, _ = judged(version("good"), resolve(str(folder)), policy)
    assert verdict.passed
    assert mentions(checks["signature"].notes[0], str(folder), "be loaded")


def test_missing_dataset_fails_the_check(version):
    policy = GatePolicy(
        evaluation=EvaluationPolicy(dataset="/gone.csv", target="y"), skip=("budget", "robustness")
    )
    _, checks, _ = judged(version("good"), None, policy)
    assert checks["evaluation"].state == "failed"
    assert checks["evaluation"].reason == "the dataset /gone.csv does not exist"


def test_noise_on_integers_stays_within_their_type(tmp_path):
    """Parquet stores pixels of 8 bits as lists of wider integers."""
    graph = """g (uint8[N,4] pixels) => (float[N] y) <int64[1] axes = {1}> {
        wide = Cast <to = 1> (pixels)
        y = ReduceSum <keepdims = 0> (wide, axes) }"""
    tensor = tensor_column("uint8", -1, 4, name="pixels")
    section = {
        "inputs": [{"name": "pixels", "dtype": "uint8", "shape": [-1, 4]}],
        "outputs": [graph_tensor("y", "float32", -1, role="values")],
        "prediction": ["y"],
        "reference": {"data": "reference.parquet"},
        "parity": {"state": "proven"},
    }
    folder = write_model(tmp_path / "model", graph, [tensor], section)
    pixels = np.random.default_rng(0).choice([0, 255], (100, 4))
    write_rows(folder / "reference.parquet", {"pixels": pixels.tolist()})
    _, checks, _ = judged(resolve(str(folder)), None, GatePolicy(skip=("budget",)))
    assert checks["robustness"].state == "passed"
    assert checks["robustness"].figures["noise_refused"] == 0


def test_version_without_onnx_form_needs_code_permission(version, policy, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: json}}\n")
    for candidate, current in (
        (resolve(str(tmp_path)), None),
        (version("good"), resolve(str(tmp_path))),
    ):
        with pytest.raises(CodeRefused, match="onnxserve gate"):
            judge(candidate, current, policy, "a test", allowed=Permissions(code=False))


def test_local_evaluation_dataset_needs_file_permission(version, policy):
    with refused(InvalidConfig, "holdout.parquet", "artifacts of MLflow"):
        judge(version("equal"), None, policy, "a test", allowed=Permissions(files=False))
    skipped = policy.model_copy(update={"skip": ("evaluation", "robustness", "budget")})
    allowed = Permissions(files=False)
    assert judge(version("equal"), None, skipped, "a test", allowed=allowed).passed


@pytest.mark.parametrize(
    ("demanded", "state", "reason"),
    [
        (
            {"noise": 0.05, "swap": [0.01]},
            "passed",
            r"accuracy 0\.\d+ loses at most 0\.\d+, under ",
        ),
        (
            {"swap": [0.01, 0.9]},
            "failed",
            r"accuracy 0\.\d+ loses 0\.\d+ under swap 0\.9; the policy allows 0\.0500$",
        ),
        ({"scale": 10}, "failed", r"under scale 10 of b; the policy allows"),
        (
            {"noise": 0.01, "fgsm": 0.1},
            "failed",
            "^fgsm cannot be measured: the version has no torch original",
        ),
    ],
)
def test_demanded_disturbances_are_checked(demanded, state, reason, version, folders):
    robustness = {
        "disturbances": demanded,
        "max_drop": 0.05,
        "dataset": str(folders["holdout"]),
        "target": "label",
    }
    policy = GatePolicy.model_validate({"robustness": robustness, "skip": ["budget"]})
    _, checks, progress = judged(version("good"), None, policy)
    assert checks["disturbances"].state == state
    assert re.search(reason, checks["disturbances"].reason)
    assert "checking disturbances" in progress
    skipped = judged(
        version("good"), None, policy.model_copy(update={"skip": ("budget", "robustness")})
    )[1]
    assert skipped["disturbances"].state == "skipped"


def test_refused_rows_fail_only_by_policy(tmp_path):
    folder = write_classifier(tmp_path / "model", types=("long", "long"))
    rows = {name: (10 * values).round().astype(int) for name, values in labelled(200).items()}
    file = write_rows(tmp_path / "rows.parquet", rows)
    robustness = {"disturbances": {"missing": 0.5}, "dataset": str(file), "target": "label"}
    for refusals, state in (("report", "passed"), ("fail", "failed")):
        policy = GatePolicy.model_validate(
            {"robustness": {**robustness, "refusals": refusals}, "skip": ["budget"]}
        )
        assert judged(resolve(str(folder)), None, policy)[1]["disturbances"].state == state


@pytest.mark.parametrize(
    "policy",
    [
        {"robustness": {"disturbances": {"noise": 0.1}, "dataset": "/etc/passwd", "target": "x"}},
        {
            "robustness": {"disturbances": {"noise": 0.1}},
            "evaluation": {"dataset": "/etc/passwd", "target": "x"},
            "skip": ["evaluation"],
        },
    ],
)
def test_local_robustness_dataset_needs_file_permission(policy, version):
    with refused(InvalidConfig, "the policy", "/etc/passwd"):
        judge(
            version("good"),
            None,
            GatePolicy.model_validate(policy),
            "a test",
            allowed=Permissions(code=False, files=False),
        )


def test_torch_original_needs_code_permission(version, folders):
    robustness = {
        "disturbances": {"pgd": 0.1},
        "dataset": str(folders["holdout"]),
        "target": "label",
    }
    policy = GatePolicy.model_validate({"robustness": robustness, "skip": ["budget"]})
    verdict = judge(version("good"), None, policy, "a test", allowed=Permissions(code=False))
    (check,) = (check for check in verdict.checks if check.name == "disturbances")
    assert check.state == "failed"
    assert mentions(check.reason, "pgd", "the torch original", "code")
