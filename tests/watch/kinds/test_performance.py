"""Performance by labels, by estimates before labels are known, and windows that cannot
be judged.
"""

import re
import tracemalloc
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.watch.kinds.performance import judge
from mlflow_deploy_plugin.watch.result import MonitorResult
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, Outcome
from tests.support.refusals import mentions
from tests.support.results import past_of
from tests.watch.kinds.conftest import classify, finding

from .conftest import CLASSIFIER, DAY, REGRESSOR

ACCURACY: dict[str, Any] = {"kind": "performance", "require": ["accuracy>=0.8"], "min_rows": 100}


def judge_performance(endpoint, **changes):
    """Judge the window by `ACCURACY` with these fields changed."""
    return judge(endpoint.ask(**(ACCURACY | changes)))


def answered(endpoint, rows):
    """Serve a skilled classifier and write its answers; return them and the truth."""
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(rows), 8.0)
    endpoint.answer(columns)
    return columns, truth


def flights(endpoint, rows=600, skill=4.0, labelled=None, seed=0, day=DAY, first=0):
    columns, truth = classify(np.random.default_rng(seed), range(first, first + rows), skill)
    endpoint.answer(columns, day)
    labels = {
        key: value for key, value in truth.items() if labelled is None or key - first < labelled
    }
    endpoint.label("flight", labels, f"labels-{first}")
    return labels


@pytest.mark.parametrize(("skill", "state"), [(8.0, "kept"), (1.0, "violated")])
def test_a_requirement_is_judged_on_labels_with_its_interval(endpoint, skill, state):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, skill=skill)

    judged = judge_performance(endpoint)

    accuracy = finding(judged, "accuracy")
    assert judged.state == state
    assert accuracy.state == state
    assert accuracy.threshold == 0.8
    assert "on 600 rows" in accuracy.reason
    assert "Wilson" in accuracy.reason
    figures = judged.figures
    assert (
        figures["accuracy_low"] < figures["accuracy"] == accuracy.value < figures["accuracy_high"]
    )
    assert figures["labelled_rows"] == 600
    assert figures["labelled_share"] == 1.0
    assert {"f1", "roc_auc", "log_loss", "brier"} <= figures.keys()


@pytest.mark.parametrize(
    ("noise", "skill", "changes", "state"),
    [
        (0.0, 1.0, {}, "violated"),
        (0.05, 1.0, {}, "cannot tell"),
        (0.05, 0.0, {}, "violated"),
        (0.05, 1.0, {"independent_rows": True}, "violated"),
    ],
)
def test_noise_of_earlier_days_widens_the_interval(endpoint, noise, skill, changes, state):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, skill=skill)
    past = [
        JudgedWindow(
            DAY - timedelta(days=day),
            "kept",
            Evidence(
                outcomes={"accuracy": Outcome("criterion", "kept", 0.85 + noise * (-1) ** day)}
            ),
        )
        for day in range(20, 0, -1)
    ]

    result = judge(replace(endpoint.ask(**(ACCURACY | changes)), past=past))

    accuracy = finding(result, "accuracy")
    assert (result.state, accuracy.state) == (state, state)
    low, high = result.figures["accuracy_low"], result.figures["accuracy_high"]
    assert 0 <= low <= accuracy.value <= high <= 1
    assert (high >= 0.8) is (state == "cannot tell")


@pytest.mark.parametrize("beyond", [0.01, -0.01])
def test_bound_within_the_interval_gives_no_verdict(endpoint, beyond):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, rows=200, skill=3.0)
    accuracy = judge_performance(endpoint).figures["accuracy"]

    judged = judge_performance(endpoint, require=[f"accuracy>={accuracy + beyond:.3f}"])

    assert judged.state == "cannot tell"
    assert not judged.is_alarm
    assert mentions(finding(judged, "accuracy").reason, "within the interval")


def test_labels_of_one_class_leave_figures_unjudged_and_prevent_a_kept_verdict(endpoint):
    _, truth = answered(endpoint, 300)
    endpoint.label("flight", dict.fromkeys(truth, 0))

    result = judge_performance(endpoint, require=["accuracy>=0.1", "recall>=0.5", "roc_auc>=0.6"])

    assert [(outcome.subject, outcome.state) for outcome in result.findings] == [
        ("accuracy", "kept"),
        ("recall", "not judged"),
        ("roc_auc", "not judged"),
    ]
    assert result.state == "cannot tell"
    assert "recall: no label is '1'" in result.reason
    assert mentions(finding(result, "roc_auc").reason, "'0'", "roc_auc")


def partly(endpoint, chance, skill=8.0, rows=1_000, seed=0, day=DAY, first=0):
    """Write partly labelled rows; `chance` is the probability of 1, for the predictions
    and for the truth.
    """
    rng = np.random.default_rng(seed)
    columns, truth = classify(rng, range(first, first + rows), skill)
    endpoint.answer(columns, day)
    probabilities = np.array(columns["output.probabilities"])[:, 1]
    is_labelled = rng.random(rows) < chance(probabilities, np.array(list(truth.values())))
    labels = {
        key: value
        for (key, value), has_label in zip(truth.items(), is_labelled, strict=True)
        if has_label
    }
    endpoint.label("flight", labels, f"labels-{first}")


def test_half_labelled_window_is_judged_and_the_unlabelled_rows_are_noted(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: 0.5, rows=600)

    result = judge_performance(endpoint)

    assert result.state == "kept"
    rows = int(result.figures["labelled_rows"])
    assert any(
        mentions(note, f"{rows} of 600 rows", "score", "answer", "event time")
        for note in result.notes
    )
    assert result.figures["labelled_share"] == rows / 600


def half_labelled(endpoint, days_ago, *, is_worse=False, share=0.5):
    """Write a day whose labels are missing at random; 60 % of the labels of a worse
    model are guesses.
    """
    rng = np.random.default_rng(days_ago)
    first = 1_000 * days_ago
    columns, truth = classify(rng, range(first, first + 1_000), 8.0)
    endpoint.answer(columns, DAY - timedelta(days=days_ago))
    actual = {
        key: int(rng.integers(2)) if is_worse and rng.random() < 0.6 else value
        for key, value in truth.items()
    }
    endpoint.label(
        "flight",
        {key: value for key, value in actual.items() if rng.random() < share},
        f"labels-{first}",
    )


def test_labels_that_contradict_the_model_are_bounds_until_the_monitor_declares_a_sample(endpoint):
    endpoint.serve(CLASSIFIER)
    for days_ago in (4, 3, 2, 1, 0):
        half_labelled(endpoint, days_ago, is_worse=True)

    undeclared = judge_performance(endpoint)
    declared = judge_performance(endpoint, labels="sampled")

    assert undeclared.state == "cannot tell"
    assert "worst case" in finding(undeclared, "accuracy").reason
    assert any(mentions(note, "probabilities", "bounds") for note in undeclared.notes)
    assert mentions(
        undeclared.notes[-1],
        "assumes that the unlabelled rows may have any label",
        "labels: sampled",
        "labels: reported",
        "labels: late",
    )
    assert declared.state == "violated"
    assert not any("labels: reported" in note for note in declared.notes)


@pytest.mark.parametrize(
    ("labels", "state"), [(None, "cannot tell"), ("sampled", "violated"), ("late", "cannot tell")]
)
def test_labels_of_an_unknown_origin_that_cannot_be_tested_violate_nothing(endpoint, labels, state):
    endpoint.serve(REGRESSOR)
    errors = np.where(np.arange(1_000) % 5 == 0, 9.0, 1.0)
    endpoint.answer({"flight": np.arange(1_000), "prediction": np.zeros(1_000)})
    complaints = {key: float(errors[key]) for key in range(0, 1_000, 5)}
    endpoint.label("flight", complaints)

    result = judge_performance(endpoint, require=["mae<=4"], labels=labels)

    assert result.state == state
    assert ("labelled rows may be complaints" in result.reason) == (labels is None)


def test_complete_labels_do_not_show_that_half_of_the_labels_are_a_sample(endpoint):
    endpoint.serve(CLASSIFIER)
    for days_ago in (4, 3, 2, 1):
        half_labelled(endpoint, days_ago, share=1.0)
    half_labelled(endpoint, 0, is_worse=True)

    assert judge_performance(endpoint).state == "cannot tell"
    assert judge_performance(endpoint, labels="sampled").state == "violated"


def right_answers(said, true):
    return np.where((said > 0.5) == true, 0.7, 0.4)


@pytest.mark.parametrize(
    ("labels", "state"),
    [
        (None, "cannot tell"),
        ("late", "cannot tell"),
        ("sampled", "kept"),
        ("reported", "cannot tell"),
    ],
)
def test_labels_of_right_answers_do_not_keep_a_requirement_unless_they_are_declared_a_sample(
    endpoint, labels, state
):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, right_answers, skill=0.5, rows=2_000, seed=2)

    result = judge_performance(endpoint, require=["accuracy>=0.62"], labels=labels)

    assert result.state == state  # The accuracy is 0.60 on all rows, and 0.72 on labelled rows.


def test_a_few_reports_bound_the_metrics_even_if_no_estimate_could_be_made(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: np.where((said > 0.5) != true, 0.5, 0.0), skill=8.0)

    judged = judge_performance(endpoint, require=["accuracy>=0.99", "f1>=0.5"], labels="reported")

    accuracy = finding(judged, "accuracy")
    assert judged.figures["labelled_rows"] < ACCURACY["min_rows"]
    # The labelled rows have an accuracy of 0, which is not the accuracy of the window.
    assert (accuracy.value, "accuracy" in judged.figures) == (None, False)
    assert judged.figures["accuracy_low"] == 0 < judged.figures["accuracy_high"] < 0.99
    assert accuracy.state == "violated"
    assert finding(judged, "f1").state == "cannot tell"
    assert "worst case" in accuracy.reason
    assert any(mentions(note, "reported", "bounds") for note in judged.notes)


def test_reports_of_one_answer_bound_the_metrics_of_the_other_answer(endpoint):
    endpoint.serve(CLASSIFIER)
    # Positives that the model missed.
    partly(endpoint, lambda said, true: (said < 0.5) & (true == 1))

    judged = judge_performance(endpoint, require=["precision>=0.5"], labels="reported")

    assert judged.state == "cannot tell"
    assert mentions(judged.reason, "precision", "0 to 1", "worst case")


def test_declared_sample_is_unweighted_and_a_difference_is_noted(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: 0.1 + 0.8 * np.abs(2 * said - 1), skill=2.0)

    judged = judge_performance(endpoint, labels="sampled")

    # The accuracy on all rows is 0.74.
    assert judged.figures["accuracy"] == pytest.approx(0.82, abs=0.02)
    assert "effective_sample_size" not in judged.figures
    assert any(mentions(note, "labels: sampled", "differ", "score") for note in judged.notes)


def test_labels_of_the_rows_that_the_model_is_sure_of_are_weighted(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: 0.1 + 0.8 * np.abs(2 * said - 1), skill=2.0)

    judged = judge_performance(endpoint, require=["accuracy>=0.85"])

    accuracy = finding(judged, "accuracy")
    # The labelled rows have an accuracy of 0.85.
    assert accuracy.value == pytest.approx(0.77, abs=0.04)
    assert accuracy.state == "violated"
    figures = judged.figures
    assert figures["effective_sample_size"] < figures["labelled_rows"]
    assert any(mentions(note, "score", "are weighted") for note in judged.notes)


def test_labels_missing_by_their_value_give_bounds_and_no_verdict(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: np.where(true == 1, 0.9, 0.2), skill=2.0)

    judged = judge_performance(endpoint, require=["accuracy>=0.85", "roc_auc>=0.7"])
    near = judge_performance(endpoint, require=["accuracy>=0.1"])

    accuracy = finding(judged, "accuracy")
    assert judged.state == "cannot tell"
    assert accuracy.state == "cannot tell"
    assert "worst case" in accuracy.reason
    assert finding(judged, "roc_auc").state == "cannot tell"
    assert any(mentions(note, "labels", "missing") for note in judged.notes)
    assert finding(near, "accuracy").state == "kept"  # The bounds hold for any missing labels.


def test_labels_of_a_model_that_is_too_sure_are_held_against_it_as_complete_windows_correct_it(
    endpoint,
):
    def too_sure(rows, seed):
        columns, truth = classify(
            np.random.default_rng(seed), range(rows * seed, rows * seed + rows), 1.0
        )
        odds = (
            np.array([entry[1] / entry[0] for entry in columns["output.probabilities"]]) * 1.5
        ) ** 3
        columns["output.probabilities"] = [[1 / (1 + entry), entry / (1 + entry)] for entry in odds]
        columns["prediction"] = (odds >= 1).astype(np.int64)
        return columns, truth

    def label(seed, columns, truth, chance):
        is_labelled = np.random.default_rng(seed).random(1_000) < chance
        endpoint.label(
            "flight",
            {
                k: v
                for (k, v), has_label in zip(truth.items(), is_labelled, strict=True)
                if has_label
            },
            f"labels-{seed}",
        )

    endpoint.serve(CLASSIFIER)
    columns, truth = too_sure(1_000, 9)
    endpoint.answer(columns)
    probabilities = np.array(columns["output.probabilities"])[:, 1]
    label(9, columns, truth, 0.3 + 0.6 * np.abs(2 * probabilities - 1))

    alone = judge_performance(endpoint)
    for number in range(1, 6):
        columns, truth = too_sure(1_000, number)
        endpoint.answer(columns, DAY - timedelta(days=number))
        label(number, columns, truth, 1.0)
    beside = judge_performance(endpoint)

    assert "worst case" in finding(alone, "accuracy").reason
    assert "Wilson" in finding(beside, "accuracy").reason
    assert finding(beside, "accuracy").state == "violated"


def test_labels_of_the_first_hours_alone_say_nothing_of_the_others(endpoint):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, labelled=300, skill=8.0)

    judged = judge_performance(endpoint)

    accuracy = finding(judged, "accuracy")
    assert judged.state == "cannot tell"
    assert "worst case" in accuracy.reason
    assert any(mentions(note, "hardly") for note in judged.notes)


def serve_after_four_days_with_mostly_positive_labels(endpoint):
    endpoint.serve(CLASSIFIER)
    for number in range(1, 5):
        day = DAY - timedelta(days=number)
        partly(
            endpoint,
            lambda said, true: np.where(true, 0.9, 0.2),
            2.0,
            seed=number,
            day=day,
            first=1_000 * number,
        )
    flights(endpoint, labelled=0)


def test_earlier_windows_with_labels_missing_by_their_value_confirm_no_estimate(endpoint):
    serve_after_four_days_with_mostly_positive_labels(endpoint)

    judged = judge_performance(endpoint)

    assert "0 earlier windows" in finding(judged, "estimated accuracy").reason
    assert any(mentions(note, "skipped", "differ: 4") for note in judged.notes)


@pytest.mark.parametrize(("labels", "windows"), [("sampled", 4), ("late", 0), ("reported", 0)])
def test_an_estimate_is_confirmed_by_the_labels_of_a_declared_sample_and_not_by_reports(
    endpoint, labels, windows
):
    serve_after_four_days_with_mostly_positive_labels(endpoint)

    judged = judge_performance(endpoint, labels=labels)

    assert judged.figures["estimated/windows"] == windows


def test_numeric_answers_are_weighted_and_the_unverifiable_rest_is_noted(endpoint):
    endpoint.serve(REGRESSOR)
    rng = np.random.default_rng(1)
    answers = rng.uniform(0, 10, 4_000)
    wanted = answers + rng.normal(0, 1 + answers)
    endpoint.answer({"flight": np.arange(4_000), "prediction": answers})
    is_labelled = rng.random(4_000) < 0.95 - answers / 12
    endpoint.label("flight", {key: float(wanted[key]) for key in np.flatnonzero(is_labelled)})

    judged = judge_performance(endpoint, require=["mae<=4"])

    real = float(np.abs(wanted - answers).mean())
    alone = float(np.abs(wanted - answers)[is_labelled].mean())
    assert abs(finding(judged, "mae").value - real) < 0.5 * abs(alone - real)
    assert any(mentions(note, "without probabilities") for note in judged.notes)


def test_before_the_labels_are_in_the_estimate_is_a_figure_and_decides_nothing(endpoint):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, skill=1.0, labelled=20)

    judged = judge_performance(endpoint)

    assert judged.state == "not judged"
    assert judged.figures["estimated/accuracy"] == pytest.approx(0.69, abs=0.05)
    assert mentions(finding(judged, "estimated accuracy").reason, "0 earlier windows")
    assert any(mentions(note, "20 of 600 rows", "min_rows is 100") for note in judged.notes)


def confirmed(endpoint, rows=600, windows=4):
    """Write earlier windows with labels."""
    for number in range(1, windows + 1):
        flights(
            endpoint,
            rows,
            skill=8.0,
            seed=number,
            day=DAY - timedelta(days=number),
            first=1000 * number,
        )


def test_an_estimate_that_earlier_windows_confirm_decides_where_it_is_asked_to(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    flights(endpoint, skill=0.5, labelled=0)

    judged = judge_performance(endpoint, estimate="decides")

    estimate = finding(judged, "estimated accuracy")
    assert judged.state == "violated"
    assert estimate.state == "violated"
    assert mentions(estimate.reason, "prediction interval", "0.95")
    figures = judged.figures
    assert figures["estimated/windows"] == 4
    low = figures["estimated/accuracy_low"]
    high = figures["estimated/accuracy_high"]
    assert low < figures["estimated/accuracy"] == estimate.value < high
    assert 0.05 < high - low < 0.25
    assert 0 <= figures["estimated/calibration_error"] < 0.1
    assert any("CBPE" in note for note in judged.notes)


def test_windows_shorter_than_an_hour_are_confirmed_by_those_just_before_them(endpoint):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, 2_400, labelled=800)  # 200 in each quarter of three hours

    judged = judge(endpoint.ask("2013-04-01T01:00/15m", **ACCURACY))

    assert judged.figures["estimated/windows"] == 4


def test_estimate_is_informative_and_raises_no_alarm_by_default(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    flights(endpoint, skill=0.5, labelled=0)

    judged = judge_performance(endpoint)

    estimate = finding(judged, "estimated accuracy")
    assert judged.state == "not judged"
    assert estimate.state == "not judged"
    assert estimate.value == pytest.approx(judged.figures["estimated/accuracy"])
    assert "prediction interval" in estimate.reason
    assert mentions(judged.reason, "estimate", "only informative")


@pytest.mark.parametrize("estimate", ["informs", "decides"])
def test_a_window_of_fewer_rows_than_min_rows_is_not_estimated(endpoint, estimate):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    flights(endpoint, rows=99, skill=0.5, labelled=0)

    result = judge_performance(endpoint, estimate=estimate)

    assert result.state == "not judged"
    assert result.reason == "accuracy: the window has 99 rows; min_rows is 100"


def test_segments_are_estimated_where_their_own_rows_of_earlier_windows_confirm_it(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    columns, _ = classify(np.random.default_rng(0), range(600), 8.0)
    hard = columns["carrier"] == "UA"
    chance = np.random.default_rng(1).uniform(0.45, 0.55, hard.sum())
    for place, value in zip(np.flatnonzero(hard), chance, strict=True):
        columns["output.probabilities"][place] = [1 - value, value]
    columns["carrier"][np.flatnonzero(~hard)[:150]] = "new"
    endpoint.answer(columns)

    judged = judge_performance(
        endpoint, segment_by=["carrier"], require=["accuracy>=0.7"], estimate="decides"
    )

    states = {outcome.segment: outcome.state for outcome in judged.findings}
    assert states == {
        "": "kept",
        "carrier=UA": "violated",
        "carrier=AA": "kept",
        "carrier=DL": "kept",
    } | {"carrier=new": "not judged"}
    new = finding(judged, "estimated accuracy", segment="carrier=new")
    assert mentions(new.reason, "0 earlier windows")


def test_too_many_classes_prevent_an_estimate_with_a_reason(endpoint):
    classes = list(range(12))
    endpoint.serve(CLASSIFIER | {"classes": classes})
    endpoint.answer(
        {"prediction": np.arange(240) % 12, "output.probabilities": [[1 / 12] * 12] * 240}
    )

    judged = judge_performance(endpoint)

    assert mentions(finding(judged, "accuracy").reason, "at most 8 labels", "12")


def test_numeric_answers_are_never_estimated_and_are_judged_by_labels(endpoint):
    endpoint.serve(REGRESSOR)
    rng = np.random.default_rng(1)
    wanted = rng.normal(10, 3, 300)
    endpoint.answer({"flight": np.arange(300), "prediction": wanted + rng.normal(0, 2, 300)})
    require = ["rmse<=1", "r2>=0.2", "accuracy>=0.8"]

    before = judge_performance(endpoint, require=require)
    endpoint.label("flight", dict(enumerate(wanted.tolist())))
    after = judge_performance(endpoint, require=require)

    assert before.state == "not judged"
    assert mentions(before.reason, "cannot be estimated")
    assert [finding(after, name).state for name in ("rmse", "r2", "accuracy")] == [
        "violated",
        "kept",
        "not judged",
    ]
    assert mentions(finding(after, "accuracy").reason, "accuracy", "labels", "numbers")
    assert after.figures["rmse"] == pytest.approx(2, rel=0.2)


def test_segments_are_judged_apart_and_share_the_rate_of_false_alarms(endpoint):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(900), 8.0)
    carriers = columns["carrier"]
    carriers[:5] = "tiny"
    endpoint.answer(columns)
    wrong = {key: 1 - value if carriers[key] == "UA" else value for key, value in truth.items()}
    endpoint.label("flight", wrong)

    judged = judge_performance(endpoint, require=["accuracy>=0.5"], segment_by=["carrier", "gate"])

    assert judged.state == "violated"
    states = {outcome.segment: outcome.state for outcome in judged.findings}
    assert states == {
        "": "kept",
        "carrier=UA": "violated",
        "carrier=AA": "kept",
        "carrier=DL": "kept",
    }
    assert "0.9875" in finding(judged, "accuracy", segment="carrier=UA").reason  # 1 - 0.05 / 4
    assert any(mentions(note, "carrier", "5 rows") for note in judged.notes)
    assert any(mentions(note, "segments", "'gate'") for note in judged.notes)


def test_labels_and_answers_of_other_types_are_the_same_where_they_mean_the_same(endpoint):
    endpoint.serve(CLASSIFIER | {"classes": [False, True]})
    endpoint.answer({"flight": np.arange(200), "prediction": np.arange(200) % 2 == 0})
    endpoint.label(
        "flight",
        {
            key: ["false", "true"][key % 2 == 0] if key < 100 else float(key % 2 == 0)
            for key in range(200)
        },
    )

    assert judge_performance(endpoint).figures["accuracy"] == 1.0


def test_text_is_compared_as_it_is_and_a_label_that_no_class_has_is_wrong(endpoint):
    endpoint.serve(CLASSIFIER | {"classes": ["late", "on time"]})
    endpoint.answer(
        {"flight": np.arange(200), "prediction": np.array(["late"] * 200, dtype=object)}
    )
    endpoint.label("flight", {key: "late" if key < 150 else "cancelled" for key in range(200)})

    assert judge_performance(endpoint).figures["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("names", "shown"),
    [({0: "no", 1: "yes"}, "'no', 'yes'"), ({0: 0, 1: 2}, "'0', '2'"), ({0: 1, 1: 2}, "'1', '2'")],
)
def test_labels_that_name_other_classes_than_the_model_are_not_judged(endpoint, names, shown):
    _, truth = answered(endpoint, 300)
    endpoint.label("flight", {key: names[value] for key, value in truth.items()})

    result = judge_performance(endpoint)

    assert result.state == "not judged"
    assert mentions(result.reason, shown, "'0', '1'")
    assert result.figures["labelled_rows"] == 300
    assert "accuracy" not in result.figures


@pytest.mark.parametrize("rows", [1, 4])
def test_a_few_labels_of_another_alphabet_are_no_accuracy_of_0_either(endpoint, rows):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(rows), 8.0)
    endpoint.answer(columns)
    endpoint.label("flight", {key: ["no", "yes"][value] for key, value in truth.items()})

    result = judge_performance(endpoint, min_rows=1)

    assert result.state == "not judged"
    assert mentions(result.reason, "classes", "'0', '1'")


def test_wrong_answers_of_a_model_with_unknown_classes_count_as_wrong(endpoint):
    endpoint.serve(CLASSIFIER | {"classes": []})
    endpoint.answer({"flight": np.arange(3), "prediction": np.zeros(3, np.int64)})
    endpoint.label("flight", dict.fromkeys(range(3), 1))

    assert judge_performance(endpoint, min_rows=1).figures["accuracy"] == 0.0


def test_text_labels_for_numeric_answers_are_noted(endpoint):
    endpoint.serve(REGRESSOR)
    endpoint.answer({"flight": np.arange(200), "prediction": np.arange(200.0)})
    endpoint.label("flight", dict.fromkeys(range(150), "late"))

    result = judge_performance(endpoint, require=["mae<=1"])

    assert result.state == "not judged"
    assert any(mentions(note, "150 labels") for note in result.notes)


def test_a_single_label_of_an_unknown_class_keeps_nothing_from_being_estimated(endpoint):
    answered(endpoint, 300)
    endpoint.label("flight", {0: 2})

    result = judge_performance(endpoint)

    assert "estimated accuracy" in {outcome.subject for outcome in result.findings}
    assert mentions(result.notes[0], "1 of 300 rows", "min_rows is 100", "'2'")


def test_unseen_class_counts_as_a_wrong_answer_and_is_noted(endpoint):
    columns, truth = answered(endpoint, 400)
    endpoint.label("flight", truth | dict.fromkeys(range(40), 2))

    judged = judge_performance(endpoint, require=["accuracy>=0.5", "recall>=0.5", "roc_auc>=0.5"])

    predicted = columns["prediction"][40:]
    wanted = np.array([truth[key] for key in range(40, 400)])
    assert finding(judged, "accuracy").value == pytest.approx((predicted == wanted).sum() / 400)
    # The metric is for the larger of the model's two classes, not a mean over three
    # classes.
    assert finding(judged, "recall").value == pytest.approx(predicted[wanted == 1].mean())
    assert finding(judged, "roc_auc").state == "kept"
    note = "40 labels are classes that the model does not have ('2'); each counts as a wrong answer"
    assert note in judged.notes


def test_earlier_windows_whose_labels_name_other_classes_confirm_no_estimate(endpoint):
    endpoint.serve(CLASSIFIER)
    for number in range(1, 5):
        day = DAY - timedelta(days=number)
        columns, truth = classify(
            np.random.default_rng(number), range(1000 * number, 1000 * number + 300), 8.0
        )
        endpoint.answer(columns, day)
        endpoint.label(
            "flight",
            {key: "yes" if value else "no" for key, value in truth.items()},
            f"labels-{number}",
        )
    flights(endpoint, labelled=0)

    reason = finding(judge_performance(endpoint), "estimated accuracy").reason

    assert "0 earlier windows" in reason


def test_thousands_of_different_labels_have_an_accuracy_and_no_mean_over_labels(endpoint):
    endpoint.serve(CLASSIFIER | {"classes": []})
    names = np.array([f"label {number}" for number in range(20_000)], dtype=object)
    endpoint.answer({"flight": np.arange(20_000), "prediction": names})
    endpoint.label("flight", dict(enumerate(names)))

    judged = judge_performance(endpoint, require=["accuracy>=0.8", "f1>=0.8"])

    assert finding(judged, "accuracy").state == "kept"
    assert mentions(finding(judged, "f1").reason, "200", "labels")


def test_labels_that_a_caller_makes_up_for_each_row_count_as_wrong_and_take_no_room(endpoint):
    endpoint.serve(CLASSIFIER)
    rows = 6000
    right = 2000
    endpoint.answer(
        {
            "flight": np.arange(rows),
            "prediction": np.arange(rows) % 2,
            "output.probabilities": [[1.0, 0.0], [0.0, 1.0]] * (rows // 2),
        }
    )
    endpoint.label(
        "flight", {row: row % 2 if row < right else f"made up {row}" for row in range(rows)}
    )
    tracemalloc.start()

    judged = judge_performance(endpoint, require=["accuracy>=0.3", "brier<=0.7", "f1>=0.1"])

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20  # The probabilities of all labels for all rows take 192 MB.
    assert judged.figures["accuracy"] == pytest.approx(right / rows)
    assert judged.figures["brier"] == pytest.approx(1 - right / rows)
    assert mentions(finding(judged, "f1").reason, "200", "labels")


def test_missing_rows_or_answer_columns_give_a_reason(endpoint):
    endpoint.serve(CLASSIFIER)
    assert mentions(judge_performance(endpoint).reason, "no rows")

    endpoint.answer({"flight": np.arange(5), "text": ["a"] * 5})
    result = judge_performance(endpoint)
    assert mentions(result.reason, "no column")
    assert result.version == "1"
    assert result.rows == 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ({"output.price": [1.0] * 5, "output.days": [2.0] * 5}, "'output.days', 'output.price'"),
        ({"prediction": [[1.0, 2.0]] * 5}, "'prediction.0', 'prediction.1'"),
    ],
)
def test_of_several_answers_a_row_none_is_judged_and_all_are_named(endpoint, answers, names):
    endpoint.answer({"flight": np.arange(5), **answers})

    judged = judge(endpoint.ask(kind="performance", require=["mae<=1"]))

    assert mentions(judged.reason, "no column", names)


def test_labelled_rows_with_a_non_numeric_answer_are_counted(endpoint):
    endpoint.serve(REGRESSOR)
    endpoint.answer({"flight": np.arange(100), "prediction": [np.nan, np.inf, None] + [1.0] * 97})
    endpoint.label("flight", dict.fromkeys(range(99), 1.5))

    judged = judge_performance(endpoint, require=["mae<=1"], min_rows=50)

    assert judged.figures["mae"] == 0.5
    assert any(mentions(note, "3 labelled rows", "non-numeric") for note in judged.notes)


def test_output_without_fractions_is_the_label_if_outputs_are_undescribed(endpoint):
    answers = np.arange(200) % 2
    endpoint.answer(
        {"flight": np.arange(200), "output.label": answers, "output.chance": np.full(200, 0.6)}
    )
    endpoint.label("flight", dict(enumerate(answers.tolist())))
    endpoint.serve({})

    assert judge_performance(endpoint).figures["accuracy"] == 1.0


@pytest.mark.long
def test_run_of_a_violated_window_reports_the_earlier_value_and_the_start(endpoint, mlflow_store):
    from mlflow_deploy_plugin.watch.run import run_monitor

    endpoint.serve(CLASSIFIER)
    for number, skill in enumerate([8.0, 8.0, 8.0, 1.0, 1.0]):
        flights(
            endpoint,
            skill=skill,
            seed=number,
            day=DAY + timedelta(days=number),
            first=1000 * number,
        )
    results: list[MonitorResult] = []
    for day in (1, 2, 3, 4, 5):
        request = replace(endpoint.ask(f"2013-04-0{day}/1d", **ACCURACY), past=past_of(*results))
        results.append(run_monitor(request))

    assert [result.state for result in results] == ["kept", "kept", "kept", "violated", "violated"]
    assert "since" not in results[2].reason
    last = results[4].findings[0]
    assert re.fullmatch(
        r"0\.9\d+ \(the median of the 3 windows before\) → 0\.\d+, lower", last.change
    )
    assert last.since == "2013-04-04T00:00:00+00:00"
    assert last.in_a_row == 2
    assert mentions(
        results[4].reason, last.change, "since the window of 4 April 2013", "window 2", last.reason
    )


def test_a_fall_within_the_requirement_is_drift_since_its_first_day(endpoint):
    endpoint.serve(CLASSIFIER)
    results: list[MonitorResult] = []
    for number in range(24):
        flights(
            endpoint,
            rows=300,
            skill=8.0 if number < 21 else 2.0,
            seed=number,
            day=DAY + timedelta(days=number),
            first=1_000 * number,
        )
        request = replace(
            endpoint.ask(
                f"{DAY + timedelta(days=number):%Y-%m-%d}/1d",
                **(ACCURACY | {"require": ["accuracy>=0.5"]}),
            ),
            past=past_of(*results),
            false_per_year=1.0 if number > 20 else None,
        )
        results.append(judge(request))

    assert [result.state for result in results[:21]] == ["kept"] * 21
    assert [result.state for result in results[22:]] == ["drift", "drift"]
    shift = finding(results[-1], "accuracy", "shift")
    assert shift.since == "2013-04-22T00:00:00+00:00"
    assert mentions(results[-1].reason, "accuracy", "lower", "drift since the window of 22 April")
    assert finding(results[-1], "accuracy", "criterion").state in ("kept", "cannot tell")


@pytest.mark.parametrize("labelled", [0, 12])
def test_reported_labels_are_followed_as_complaints(endpoint, labelled):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, labelled=labelled)

    levels = judge_performance(endpoint, labels="reported").evidence.levels

    assert {str(key): level for key, level in levels.items()} == {
        "complaints per 1,000 rows/metric": labelled / 0.6,
        "/rows": 600,
    }


@pytest.mark.parametrize(("labels", "is_known"), [(None, True), ("sampled", True), ("late", False)])
def test_metrics_of_labelled_rows_are_followed_unless_late_labels_depend_on_their_value(
    endpoint, labels, is_known
):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, right_answers, skill=0.5, rows=2_000, seed=2)

    result = judge_performance(endpoint, labels=labels)

    levels = {str(key): level for key, level in result.evidence.levels.items()}
    assert ("accuracy/metric" in levels) is is_known
    assert levels.get("/rows", result.figures["labelled_rows"]) == result.figures["labelled_rows"]


@pytest.mark.parametrize(
    "withheld",
    [
        CaptureSpec(mask=("prediction",)),
        CaptureSpec(mask=("output.label",)),
        CaptureSpec(drop=("prediction",)),
    ],
    ids=str,
)
def test_answers_missing_from_the_log_are_derived_from_the_probabilities(endpoint, withheld):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(600), 8.0)
    answers = columns.pop("prediction")
    if withheld.mask:
        columns["prediction"] = [f"{int(answer):032x}" for answer in answers]
    endpoint.answer(columns)
    endpoint.label("flight", truth)
    request = replace(endpoint.ask(**ACCURACY), capture=withheld)

    assert judge(request).state == "kept"  # computed from the probabilities


def test_hashes_are_no_answers(endpoint):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(300), 8.0)
    for name in ("prediction", "output.probabilities"):
        columns[name] = [f"{number % 2:032x}" for number in range(300)]
    endpoint.answer(columns)
    endpoint.label("flight", truth)

    judged = judge(
        replace(
            endpoint.ask(**ACCURACY),
            capture=CaptureSpec(mask=("prediction", "output.probabilities")),
        )
    )

    assert judged.state == "not judged"
    assert judged.reason.startswith(
        "the log has no column with a single answer per row: capture.mask replaces"
    )


def test_rows_declared_independent_are_counted_in_full(endpoint):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, rows=2_000)

    taken = judge_performance(endpoint, independent_rows=True).findings[0]

    assert (taken.state, "worth" in taken.reason) == ("kept", False)
