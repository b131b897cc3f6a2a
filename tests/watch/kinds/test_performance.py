"""Performance by labels, by estimates before labels are known, and windows that cannot
be judged.
"""

import tracemalloc
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.watch.kinds.performance import judge
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, Outcome
from tests.support.refusals import mentions
from tests.watch.kinds.conftest import EndpointWorld, classify, finding

from .conftest import CLASSIFIER, DAY, REGRESSOR

ACCURACY = {"kind": "performance", "require": ["accuracy>=0.8"], "min_rows": 100}


def judge_performance(endpoint, **changes):
    """Judge the window by `ACCURACY` with these fields changed."""
    return judge(endpoint.ask(**(ACCURACY | changes)))


def flights(endpoint, rows=600, skill=4.0, labelled=None, seed=0, day=DAY, first=0, names=(0, 1)):
    columns, truth = classify(np.random.default_rng(seed), range(first, first + rows), skill)
    endpoint.answer(columns, day)
    labels = {
        key: names[value]
        for key, value in truth.items()
        if labelled is None or key - first < labelled
    }
    endpoint.label("flight", labels, f"labels-{first}")


@pytest.mark.parametrize(("skill", "state"), [(8.0, "kept"), (1.0, "violated")])
def test_requirement_is_judged_with_an_interval(endpoint, skill, state):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, skill=skill)

    judged = judge_performance(endpoint)

    accuracy = finding(judged, "accuracy")
    assert (judged.state, accuracy.state, accuracy.threshold) == (state, state, 0.8)
    assert mentions(accuracy.reason, "on 600 rows", "Wilson")
    figures = judged.figures
    assert figures["accuracy_low"] < figures["accuracy"] < figures["accuracy_high"]
    assert figures["accuracy"] == accuracy.value
    assert (figures["labelled_rows"], figures["labelled_share"]) == (600, 1.0)
    assert {"f1", "roc_auc", "log_loss", "brier"} <= figures.keys()


@pytest.mark.parametrize(
    ("noise", "skill", "changes", "state"),
    [
        (0.0, 1.0, {}, "violated"),
        (0.05, 1.0, {}, "cannot tell"),
        (0.05, 1.0, {"independent_rows": True}, "violated"),
    ],
)
def test_earlier_noise_widens_the_interval(endpoint, noise, skill, changes, state):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, skill=skill)
    past = []
    for day in range(20, 0, -1):
        outcome = Outcome("criterion", "kept", 0.85 + noise * (-1) ** day)
        evidence = Evidence(outcomes={"accuracy": outcome})
        past.append(JudgedWindow(DAY - timedelta(days=day), "kept", evidence))

    result = judge(replace(endpoint.ask(**(ACCURACY | changes)), past=past))

    accuracy = finding(result, "accuracy")
    assert (result.state, accuracy.state) == (state, state)
    low = result.figures["accuracy_low"]
    high = result.figures["accuracy_high"]
    assert 0 <= low <= accuracy.value <= high <= 1
    assert (high >= 0.8) is (state == "cannot tell")


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


def half_labelled_by_a_worse_model(endpoint, days_ago):
    """Write a day whose labels are missing at random; 60 % of them are guesses."""
    rng = np.random.default_rng(days_ago)
    first = 1_000 * days_ago
    columns, truth = classify(rng, range(first, first + 1_000), 8.0)
    endpoint.answer(columns, DAY - timedelta(days=days_ago))
    labels = {
        key: int(rng.integers(2)) if rng.random() < 0.6 else value
        for key, value in truth.items()
        if rng.random() < 0.5
    }
    endpoint.label("flight", labels, f"labels-{first}")


def test_contradicting_labels_are_bounds_unless_sampled(endpoint):
    endpoint.serve(CLASSIFIER)
    for days_ago in (2, 1, 0):
        half_labelled_by_a_worse_model(endpoint, days_ago)

    undeclared = judge_performance(endpoint)
    declared = judge_performance(endpoint, labels="sampled")

    assert undeclared.state == "cannot tell"
    assert "worst case" in finding(undeclared, "accuracy").reason
    assert any(mentions(note, "probabilities", "bounds") for note in undeclared.notes)
    remedies = [f"labels: {origin}" for origin in ("sampled", "reported", "late")]
    assert mentions(undeclared.notes[-1], *remedies)
    assert declared.state == "violated"
    assert not any("labels: reported" in note for note in declared.notes)


def test_labels_of_unknown_origin_violate_nothing(endpoint):
    endpoint.serve(REGRESSOR)
    errors = np.where(np.arange(1_000) % 5 == 0, 9.0, 1.0)
    endpoint.answer({"flight": np.arange(1_000), "prediction": np.zeros(1_000)})
    complaints = {key: float(errors[key]) for key in range(0, 1_000, 5)}
    endpoint.label("flight", complaints)

    states = {None: "cannot tell", "sampled": "violated", "late": "cannot tell"}
    for labels, state in states.items():
        result = judge_performance(endpoint, require=["mae<=4"], labels=labels)

        assert result.state == state
        assert ("labelled rows may be complaints" in result.reason) == (labels is None)


def right_answers(said, true):
    return np.where((said > 0.5) == true, 0.7, 0.4)


@pytest.fixture(scope="module")
def half_right(tmp_path_factory):
    """An endpoint with an accuracy of 0.60 on all rows, and 0.72 on labelled rows."""
    written = EndpointWorld(Settings(home=tmp_path_factory.mktemp("half_right")))
    written.serve(CLASSIFIER)
    partly(written, right_answers, skill=0.5, rows=2_000, seed=2)
    return written


@pytest.mark.parametrize(
    ("labels", "state", "is_followed"),
    [
        (None, "cannot tell", True),
        ("late", "cannot tell", True),
        ("sampled", "kept", True),
        ("reported", "cannot tell", False),
    ],
)
def test_selected_labels_keep_no_requirement(half_right, labels, state, is_followed):
    result = judge_performance(half_right, require=["accuracy>=0.62"], labels=labels)

    assert result.state == state
    levels = {str(key): level for key, level in result.evidence.levels.items()}
    assert ("accuracy/metric" in levels) is is_followed
    if is_followed:
        assert levels["/rows"] == result.figures["labelled_rows"]


def test_few_reported_labels_bound_the_metrics(endpoint):
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


def test_labels_missing_by_score_are_weighted(endpoint):
    endpoint.serve(CLASSIFIER)
    partly(endpoint, lambda said, true: 0.1 + 0.8 * np.abs(2 * said - 1), skill=2.0)

    weighted = judge_performance(endpoint, require=["accuracy>=0.85"])
    sampled = judge_performance(endpoint, labels="sampled")

    # The accuracy is 0.74 on all rows, and 0.82 on the labelled rows.
    accuracy = finding(weighted, "accuracy")
    assert accuracy.value == pytest.approx(0.77, abs=0.04)
    assert accuracy.state == "violated"
    assert weighted.figures["effective_sample_size"] < weighted.figures["labelled_rows"]
    assert any(mentions(note, "score", "are weighted") for note in weighted.notes)
    assert sampled.figures["accuracy"] == pytest.approx(0.82, abs=0.02)
    assert "effective_sample_size" not in sampled.figures
    assert any(mentions(note, "labels: sampled", "differ", "score") for note in sampled.notes)


def too_sure(endpoint, number, is_complete):
    """Write a day of a model whose probabilities are too near to 0 and 1."""
    rng = np.random.default_rng(number)
    columns, truth = classify(rng, range(1000 * number, 1000 * number + 1000), 1.0)
    odds = np.array([1.5 * yes / no for no, yes in columns["output.probabilities"]]) ** 3
    chances = odds / (1 + odds)
    columns["output.probabilities"] = np.stack([1 - chances, chances], axis=1).tolist()
    columns["prediction"] = (odds >= 1).astype(np.int64)
    endpoint.answer(columns, DAY - timedelta(days=number))
    has_label = is_complete | (rng.random(1000) < 0.3 + 0.6 * np.abs(2 * chances - 1))
    labels = [key for key, is_known in zip(truth, has_label, strict=True) if is_known]
    endpoint.label("flight", {key: truth[key] for key in labels}, f"labels-{number}")


@pytest.mark.long
def test_complete_windows_correct_the_confidence(endpoint):
    endpoint.serve(CLASSIFIER)
    too_sure(endpoint, 0, is_complete=False)
    alone = finding(judge_performance(endpoint), "accuracy")
    for number in range(1, 4):
        too_sure(endpoint, number, is_complete=True)
    beside = finding(judge_performance(endpoint), "accuracy")

    assert "worst case" in alone.reason
    assert "Wilson" in beside.reason
    assert beside.state == "violated"


def test_only_sampled_labels_confirm_an_estimate(endpoint):
    endpoint.serve(CLASSIFIER)
    for number in range(1, 5):
        partly(
            endpoint,
            lambda said, true: np.where(true, 0.9, 0.2),
            2.0,
            rows=300,
            seed=number,
            day=DAY - timedelta(days=number),
            first=1_000 * number,
        )
    flights(endpoint, labelled=0)

    windows = {
        labels: judge_performance(endpoint, labels=labels).figures["estimated/windows"]
        for labels in (None, "sampled", "reported")
    }
    assert windows == {None: 0, "sampled": 4, "reported": 0}


def test_numeric_answers_are_weighted(endpoint):
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


def confirmed(endpoint, **fields):
    """Write earlier windows with labels."""
    for number in range(1, 5):
        day = DAY - timedelta(days=number)
        flights(endpoint, 400, 8.0, seed=number, day=day, first=1000 * number, **fields)


def test_confirmed_estimate_decides_if_configured(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    flights(endpoint, skill=0.5, labelled=0)

    judged = judge_performance(endpoint, estimate="decides")

    estimate = finding(judged, "estimated accuracy")
    assert judge_performance(endpoint).state == "not judged"
    assert (judged.state, estimate.state) == ("violated", "violated")
    assert mentions(estimate.reason, "prediction interval", "0.95")
    figures = judged.figures
    assert figures["estimated/windows"] == 4
    low = figures["estimated/accuracy_low"]
    high = figures["estimated/accuracy_high"]
    assert low < figures["estimated/accuracy"] == estimate.value < high
    assert 0.05 < high - low < 0.25
    assert 0 <= figures["estimated/calibration_error"] < 0.1


def test_earlier_windows_confirm_short_windows(endpoint):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, 2_400, labelled=800)  # 200 in each quarter of three hours

    judged = judge(endpoint.ask("2013-04-01T01:00/15m", **ACCURACY))

    assert judged.figures["estimated/windows"] == 4


def test_window_below_min_rows_is_not_estimated(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    flights(endpoint, rows=99, skill=0.5, labelled=0)

    result = judge_performance(endpoint, estimate="decides")

    assert result.state == "not judged"
    assert result.reason == "accuracy: the window has 99 rows; min_rows is 100"


def test_segments_are_estimated_separately(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint)
    columns, _ = classify(np.random.default_rng(0), range(600), 8.0)
    carriers = columns["carrier"]
    columns["output.probabilities"] = [
        [0.5, 0.5] if carrier == "UA" else chances
        for carrier, chances in zip(carriers, columns["output.probabilities"], strict=True)
    ]
    carriers[np.flatnonzero(carriers == "AA")[:150]] = "new"
    endpoint.answer(columns)

    judged = judge_performance(
        endpoint, segment_by=["carrier"], require=["accuracy>=0.7"], estimate="decides"
    )

    states = {outcome.segment: outcome.state for outcome in judged.findings}
    assert (states["carrier=UA"], states["carrier=DL"]) == ("violated", "kept")
    assert states["carrier=new"] == "not judged"
    new = finding(judged, "estimated accuracy", segment="carrier=new")
    assert mentions(new.reason, "0 earlier windows")


@pytest.mark.parametrize(
    ("classes", "columns", "names"),
    [
        (12, {"output.probabilities": [[1 / 12] * 12] * 240}, ["at most 8 labels", "12"]),
        (2, {}, ["class probabilities", "not available"]),
    ],
)
def test_estimate_needs_probabilities_of_few_classes(endpoint, classes, columns, names):
    endpoint.serve(CLASSIFIER | {"classes": list(range(classes))})
    endpoint.answer({"prediction": np.arange(240) % classes, **columns})

    assert mentions(finding(judge_performance(endpoint), "accuracy").reason, *names)


def test_numeric_answers_are_not_estimated(endpoint):
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
    states = [finding(after, name).state for name in ("rmse", "r2", "accuracy")]
    assert states == ["violated", "kept", "not judged"]


def test_segments_share_the_false_alarm_rate(endpoint):
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
    kept = dict.fromkeys(("", "carrier=AA", "carrier=DL"), "kept")
    assert states == {**kept, "carrier=UA": "violated"}
    assert "0.9875" in finding(judged, "accuracy", segment="carrier=UA").reason  # 1 - 0.05 / 4
    assert any(mentions(note, "carrier", "5 rows") for note in judged.notes)
    assert any(mentions(note, "segments", "'gate'") for note in judged.notes)


EVEN = np.arange(200) % 2 == 0


@pytest.mark.parametrize(
    ("classes", "answers", "labels", "accuracy"),
    [
        ([False, True], EVEN, [str(value).lower() for value in EVEN], 1.0),
        ([False, True], EVEN, [float(value) for value in EVEN], 1.0),
        (["late", "on time"], ["late"] * 200, ["late"] * 150 + ["cancelled"] * 50, 0.75),
        ([], np.zeros(200, np.int64), [1] * 150 + [0] * 50, 0.25),
    ],
)
def test_labels_are_compared_by_their_meaning(endpoint, classes, answers, labels, accuracy):
    endpoint.serve(CLASSIFIER | {"classes": classes})
    endpoint.answer({"flight": np.arange(200), "prediction": np.array(answers)})
    endpoint.label("flight", dict(enumerate(labels)))

    assert judge_performance(endpoint).figures["accuracy"] == accuracy


@pytest.mark.parametrize(("rows", "names"), [(300, (1, 2)), (4, ("no", "yes"))])
def test_labels_of_other_classes_are_not_judged(endpoint, rows, names):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, rows, names=names)

    result = judge_performance(endpoint, min_rows=1)

    assert result.state == "not judged"
    assert mentions(result.reason, "classes", "'0', '1'", repr(str(names[1])))
    assert result.figures["labelled_rows"] == rows
    assert "accuracy" not in result.figures


def test_unknown_class_counts_as_wrong(endpoint):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(400), 8.0)
    endpoint.answer(columns)
    endpoint.label("flight", truth | dict.fromkeys(range(40), 2))

    judged = judge_performance(endpoint, require=["accuracy>=0.5", "recall>=0.5", "roc_auc>=0.5"])

    predicted = columns["prediction"][40:]
    wanted = np.array([truth[key] for key in range(40, 400)])
    assert finding(judged, "accuracy").value == pytest.approx((predicted == wanted).sum() / 400)
    # The recall is that of the larger of the model's two classes.
    assert finding(judged, "recall").value == pytest.approx(predicted[wanted == 1].mean())
    assert finding(judged, "roc_auc").state == "kept"
    assert any(mentions(note, "40 labels", "'2'") for note in judged.notes)


def test_labels_of_other_classes_confirm_no_estimate(endpoint):
    endpoint.serve(CLASSIFIER)
    confirmed(endpoint, names=("no", "yes"))
    flights(endpoint, labelled=0)

    assert judge_performance(endpoint).figures["estimated/windows"] == 0


def test_many_unknown_labels_use_little_memory(endpoint):
    endpoint.serve(CLASSIFIER)
    rows = 3000
    right = 1000
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
    assert peak < 25 * 2**20  # The probabilities of all labels for all rows take 48 MB.
    assert judged.figures["accuracy"] == pytest.approx(right / rows)
    assert judged.figures["brier"] == pytest.approx(1 - right / rows)
    assert mentions(finding(judged, "f1").reason, "200", "labels")


def test_missing_rows_or_answers_are_named(endpoint):
    endpoint.serve(CLASSIFIER)
    assert mentions(judge_performance(endpoint).reason, "no rows")

    endpoint.answer({"flight": np.arange(5), "text": ["a"] * 5})
    result = judge_performance(endpoint)
    assert mentions(result.reason, "no column")
    assert (result.version, result.rows) == ("1", 5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ({"output.price": [1.0] * 5, "output.days": [2.0] * 5}, "'output.days', 'output.price'"),
        ({"prediction": [[1.0, 2.0]] * 5}, "'prediction.0', 'prediction.1'"),
    ],
)
def test_several_answers_per_row_are_named(endpoint, answers, names):
    endpoint.answer({"flight": np.arange(5), **answers})

    judged = judge(endpoint.ask(kind="performance", require=["mae<=1"]))

    assert mentions(judged.reason, "no column", names)


def test_non_numeric_answers_are_noted(endpoint):
    endpoint.serve(REGRESSOR)
    endpoint.answer({"flight": np.arange(100), "prediction": [np.nan, np.inf, None] + [1.0] * 97})
    endpoint.label("flight", dict.fromkeys(range(99), 1.5))

    judged = judge_performance(endpoint, require=["mae<=1"], min_rows=50)

    assert judged.figures["mae"] == 0.5
    assert any(mentions(note, "3 labelled rows", "non-numeric") for note in judged.notes)


def test_undescribed_integer_output_is_the_label(endpoint):
    answers = np.arange(200) % 2
    endpoint.answer(
        {"flight": np.arange(200), "output.label": answers, "output.chance": np.full(200, 0.6)}
    )
    endpoint.label("flight", dict(enumerate(answers.tolist())))
    endpoint.serve({})

    assert judge_performance(endpoint).figures["accuracy"] == 1.0


@pytest.mark.long
def test_lasting_fall_is_drift(endpoint):
    endpoint.serve(CLASSIFIER)
    spec = ACCURACY | {"require": ["accuracy>=0.5"]}
    flights(endpoint, skill=8.0)
    calm = judge(endpoint.ask(**spec))
    past = [JudgedWindow(DAY - timedelta(days=day), "kept", calm.evidence) for day in range(21)]
    past.reverse()
    for number in (1, 2, 3):
        day = DAY + timedelta(days=number)
        flights(endpoint, skill=2.0, seed=number, day=day, first=1_000 * number)
        request = endpoint.ask(f"{day:%Y-%m-%d}/1d", **spec)
        result = judge(replace(request, past=tuple(past), false_per_year=1.0))
        past.append(JudgedWindow(day, result.state, result.evidence))

    assert (calm.state, result.state) == ("kept", "drift")
    assert finding(result, "accuracy", "shift").since == "2013-04-02T00:00:00+00:00"
    assert mentions(result.reason, "accuracy", "lower", "drift since the window of 2 April")
    assert finding(result, "accuracy", "criterion").state in ("kept", "cannot tell")


@pytest.mark.parametrize("labelled", [0, 12])
def test_reported_labels_are_followed_as_complaints(endpoint, labelled):
    endpoint.serve(CLASSIFIER)
    flights(endpoint, labelled=labelled)

    levels = judge_performance(endpoint, labels="reported").evidence.levels

    assert {str(key): level for key, level in levels.items()} == {
        "complaints per 1,000 rows/metric": labelled / 0.6,
        "/rows": 600,
    }


@pytest.mark.parametrize(
    ("withheld", "state"),
    [
        ({"mask": ("output.label",)}, "kept"),
        ({"drop": ("prediction",)}, "kept"),
        ({"mask": ("prediction", "output.probabilities")}, "not judged"),
    ],
)
def test_withheld_answers_are_derived_from_probabilities(endpoint, withheld, state):
    endpoint.serve(CLASSIFIER)
    columns, truth = classify(np.random.default_rng(0), range(600), 8.0)
    del columns["prediction"]
    for name in withheld.get("mask", ()):
        logged = name.replace("output.label", "prediction")
        columns[logged] = [f"{row % 2:032x}" for row in range(600)]
    endpoint.answer(columns)
    endpoint.label("flight", truth)
    request = replace(endpoint.ask(**ACCURACY), capture=CaptureSpec(**withheld))

    assert judge(request).state == state
