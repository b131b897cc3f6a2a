"""Tests of the comparison of two versions."""

from dataclasses import astuple, replace
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused
from mlflow_deploy_plugin.promote.evidence.diff import DiffRow, VersionDiff, compare, diff_versions
from mlflow_deploy_plugin.promote.evidence.record import read_record
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult
from tests.support.classifiers import write_classifier
from tests.support.refusals import mentions, refused


def changed(diff, section):
    return {
        row.name: (row.before, row.after)
        for row in diff.rows
        if row.section == section and row.is_changed
    }


def test_sections_have_their_differences(registry):
    diff = diff_versions("models:/toy/1", "models:/toy/2")
    assert diff.before == "models:/toy/1"
    assert diff.after == "models:/toy/2"
    assert changed(diff, "data") == {"flights": ("digest1", "digest2")}
    assert changed(diff, "code") == {"git commit": ("c0ffee1", "c0ffee2")}
    assert changed(diff, "parameters") == {"C": ("1", "2")}
    assert changed(diff, "metrics") == {"accuracy": (0.91, 0.92)}
    assert changed(diff, "environment") == {"scikit_learn (training)": ("1.1", "1.2")}
    assert changed(diff, "gate")["state"] == ("passed without an evaluation", None)
    assert changed(diff, "gate")["parity rows"] == (1000.0, None)
    assert changed(diff, "signature") == changed(diff, "parity") == {}
    assert mentions(diff.notes[0], "models:/toy/2", "gate")


def test_metrics_and_gate_come_first_with_trends(registry):
    first, second = (registry.get_model_version("toy", number).run_id for number in ("1", "2"))
    for run_id, figures in (
        (first, {"val_loss": 0.5, "training_f1_score": 0.5, "brier_score": 0.1, "rows": 10.0}),
        (second, {"val_loss": 0.4, "training_f1_score": 0.4, "brier_score": 0.2, "rows": 20.0}),
        (first, {"fit_seconds": 9.0, "r2": 0.97712, "onnxserve.parity.y.max_error": 1e-7}),
        (second, {"fit_seconds": 8.0, "r2": 0.97714, "onnxserve.parity.y.max_error": 2e-7}),
    ):
        for name, value in figures.items():
            registry.log_metric(run_id, name, value)

    diff = diff_versions("models:/toy/1", "models:/toy/2")

    sections = list(dict.fromkeys(row.section for row in diff.rows))
    assert sections[:2] == ["metrics", "gate"]
    assert sections[-2:] == ["graph", "timings"]
    assert changed(diff, "timings") == {"fit_seconds": (9.0, 8.0)}
    assert diff.sentence == (
        "version 2 is worse: brier_score 0.1 → 0.2; better: accuracy 0.91 → 0.92, val_loss 0.5 → "
        "0.4; 33.3 % of the rows are answered differently"
    )
    assert {row.name: row.trend for row in diff.rows if row.section == "metrics"} == {
        "accuracy": "better",
        "val_loss": "better",
        "training_f1_score": "worse",
        "brier_score": "worse",
        "rows": "",
        "r2": "",
    }
    differences = {(row.section, row.name): row.difference for row in diff.rows}
    assert differences["metrics", "rows"] == 10.0
    assert differences["parameters", "C"] is None


def test_trend_of_negated_errors_and_d2_scores(registry):
    names = (
        "neg_mean_squared_error",
        "val_neg_log_loss",
        "d2_absolute_error_score",
        "d2_loss",
        "loss_neg",
        "recall_neg",
    )
    record = read_record("models:/toy/2")
    before, after = (
        replace(record, run=replace(record.run, metrics=dict.fromkeys(names, value)))
        for value in (-0.5, -0.3)
    )
    trends = {row.name: row.trend for row in compare(before, after).rows}
    assert [trends[name] for name in names] == [
        "better",
        "better",
        "better",
        "worse",
        "worse",
        "better",
    ]


def test_failed_gate_is_worse(registry):
    for number, state in (("1", "passed"), ("2", "failed")):
        for name, value in (("", state), (".digest", "a digest")):
            registry.set_model_version_tag("toy", number, f"onnxserve.gate{name}", value)
    passed, failed = (read_record(f"models:/toy/{number}") for number in (1, 2))
    worse = compare(passed, failed)
    trends = [
        {row.name: row.trend for row in diff.rows if row.section == "gate"}["state"]
        for diff in (worse, compare(failed, passed))
    ]
    assert trends == ["worse", "better"]
    assert "version 2 is worse: gate state passed → failed; better: accuracy" in worse.sentence


def test_changes_above_the_limit_are_counted():
    rows = [DiffRow("metrics", f"f1_{n}", 0.5, 0.6, True, "better") for n in range(5)]
    rows[0] = replace(rows[0], name="train_f1", trend="worse")
    diff = VersionDiff("models:/toy/1", "models:/toy/2", tuple(rows), ())
    changes = ", ".join(f"f1_{n} 0.5 → 0.6" for n in (1, 2, 3))
    assert diff.sentence == f"version 2 is better: {changes}, 1 more"
    only = replace(diff, rows=diff.rows[:1]).sentence
    assert only == "version 2 is worse: train_f1 0.5 → 0.6"
    neither = replace(diff, rows=()).sentence
    assert neither == "version 2 is neither better nor worse by its recorded metrics"


def test_disagreement_comes_from_the_backtest(registry):
    old, new = (read_record(f"models:/toy/{number}") for number in (1, 2))
    figures = {"disagreement": 0.97}
    checks = (CheckResult("backtest", "passed", "", figures),)
    judged = replace(new, gate=replace(old.gate, against=old.uri, checks=checks))
    other = replace(new, gate=replace(old.gate, against="models:/toy/9", checks=checks))
    assert [compare(old, after).disagreement for after in (judged, other, new)] == [
        0.97,
        None,
        None,
    ]


def test_example_predictions_are_compared_per_output(registry):
    diff = diff_versions("models:/toy/1", "models:/toy/2")
    assert not isinstance(diff.predictions, Refused)
    # The labels of the rows (1, 0), (0, 1) and (0.5, 0.75) are 1, 0, 1 and 1, 1, 1.
    largest = pytest.approx(0.8808 - 0.2689, abs=1e-4)
    assert [astuple(change) for change in diff.predictions] == [
        ("label", 3, 1, None),
        ("probabilities", 3, 3, largest),
    ]


def test_version_equals_itself(registry):
    registry.log_metric(registry.get_model_version("toy", "1").run_id, "loss", float("nan"))
    diff = diff_versions("models:/toy@champion", "models:/toy/1")
    assert {row.is_changed for row in diff.rows} == {False}
    assert not isinstance(diff.predictions, Refused)
    assert [change.largest for change in diff.predictions] == [None, 0.0]


def test_incomparable_predictions_have_a_reason(registry, tmp_path):
    renamed = write_classifier(tmp_path / "renamed", columns=("a", "c"))
    registry.create_model_version("toy", renamed.as_uri())
    bare = write_classifier(tmp_path / "bare")
    registry.create_model_version("toy", bare.as_uri())
    for before, after, names in (
        ("2", "4", ("c",)),
        ("2", "3", ("python_function",)),
        ("5", "5", ("input_example",)),
    ):
        predictions = diff_versions(f"models:/toy/{before}", f"models:/toy/{after}").predictions
        assert isinstance(predictions, Refused)
        assert mentions(predictions.reason, *names)
    # The example of the other version is used.
    assert not isinstance(diff_versions("models:/toy/2", "models:/toy/5").predictions, Refused)


@pytest.mark.parametrize("example", ['{"dataframe_split": {"columns": ["a"], "data": [[1]]}}', "{"])
def test_invalid_example_has_a_reason(registry, example):
    Path("2/serving_input_example.json").write_text(example)
    assert isinstance(diff_versions("models:/toy/1", "models:/toy/2").predictions, Refused)


def test_copy_is_noted(registry):
    registry.create_registered_model("copies")
    registry.copy_model_version("models:/toy/1", "copies")
    registry.copy_model_version("models:/toy/2", "copies")
    diff = diff_versions("models:/copies/1", "models:/copies/2")
    assert changed(diff, "parameters") == {"C": ("1", "2")}
    for number in (1, 2):
        assert any(
            mentions(note, f"models:/copies/{number}", f"models:/toy/{number}")
            for note in diff.notes
        )


def test_versions_of_different_models_are_refused(registry):
    registry.copy_model_version("models:/toy/1", "copies")
    with refused(InvalidConfig, "toy", "copies"):
        diff_versions("models:/toy/1", "models:/copies/1")
