"""The Evidently report: it agrees with the verdict, and no column kills it."""

import json

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.features import Feature
from mlflow_deploy_plugin.monitoring.verdict import judge

DAYS, ROWS = 25, 40
SIZE = DAYS * ROWS
TIMES = np.repeat(np.arange(DAYS), ROWS)
RNG = np.random.default_rng(0)


def number(values, size=ROWS):
    return Feature("trap", "number", np.resize(np.asarray(values, dtype=np.float64), size))


def text(values, size=ROWS):
    return Feature("trap", "category", np.resize(np.array(values, dtype=object), size))


def plain(size, shift=0.0):
    return Feature("plain", "number", RNG.normal(shift, 1, size))


def build_report(*arguments):
    # Evidently, which it brings, takes seconds to import, and every worker of a run imports every test
    from mlflow_deploy_plugin.monitoring import report

    return report.build_report(*arguments)


def judged(*pairs):
    verdict = judge(pairs, TIMES, 0, 1, 10, 0.05)
    return verdict, build_report(verdict, pairs, "flights", ["a note <b>"])


def drift_of(report):
    """Score and whether it is called drifted, by column, as Evidently's own JSON has them."""
    document = json.loads(report.json)
    scores = {
        m["config"]["column"]: m["value"] for m in document["metrics"] if m["metric_name"].startswith("ValueDrift")
    }
    failed = {
        t["metric_config"]["params"]["column"]
        for t in document["tests"]
        if t["name"].startswith("Value Drift") and t["status"] == "FAIL"
    }
    dataset = next(t["status"] for t in document["tests"] if t["name"].startswith("Share of Drifted"))
    return scores, failed, dataset


@pytest.mark.parametrize("shift", [0, 9])
def test_report_and_verdict_say_the_same(shift):
    verdict, report = judged((plain(SIZE), plain(ROWS, shift)), (text(["a", "b", None], SIZE), text(["a", "b", None])))

    scores, failed, dataset = drift_of(report)

    assert scores == {feature.name: pytest.approx(feature.score) for feature in verdict.features}
    assert failed == {feature.name for feature in verdict.features if feature.is_drifted}
    assert dataset == ("FAIL" if verdict.state == "drift" else "SUCCESS")
    assert (verdict.state == "drift") == bool(shift)


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        pytest.param(number([1, 2, np.nan], SIZE), number([np.nan]), id="no value in the window"),
        pytest.param(number([np.nan], SIZE), number([1, 2]), id="no value in the reference"),
        pytest.param(text([None], SIZE), text([None]), id="no value at all"),
        pytest.param(number([3], SIZE), number([3]), id="constant"),
        pytest.param(number([0], SIZE), number([5]), id="constant that changed"),
        pytest.param(number([np.inf, 1, 2], SIZE), number([-np.inf, 1, 2]), id="infinities"),
        pytest.param(number([1e300, -1e300, 1], SIZE), number([1e300]), id="huge numbers"),
        pytest.param(number([1.7e18], SIZE), number([1.7e18]), id="a large constant"),
        pytest.param(text([f"id{n}" for n in range(SIZE)], SIZE), text([f"x{n}" for n in range(ROWS)]), id="ids"),
        pytest.param(text(["true", "false"], SIZE), text(["true"]), id="booleans"),
        pytest.param(text(["ä" * 5000, "", " "], SIZE), text(["<script>alert(1)</script>"]), id="odd texts"),
        pytest.param(number([0, 1], SIZE), number([0, 1]), id="two values"),
        pytest.param(number([1, 2, 3] * 3 + [np.nan], SIZE), number([1, np.nan, np.nan]), id="a third missing"),
    ],
)
def test_no_column_kills_the_report_or_breaks_the_agreement(reference, current):
    verdict, report = judged((plain(SIZE), plain(ROWS)), (reference, current))

    scores, failed, _ = drift_of(report)

    assert set(scores) == {"plain", "trap"}
    assert failed == {feature.name for feature in verdict.features if feature.is_drifted}
    assert "<script>alert(1)" not in report.html


@pytest.mark.parametrize("name", ["", "a b", "a/b%[x]", "prediction", "target", "index", "0", "<i>"])
def test_a_feature_may_have_any_name(name):
    pair = tuple(Feature(name, "number", RNG.normal(size=size)) for size in (SIZE, ROWS))

    scores, _, _ = drift_of(judged(pair, (plain(SIZE), plain(ROWS)))[1])

    assert name in scores


def test_of_many_features_those_with_the_highest_scores_are_drawn():
    pairs = [tuple(Feature(f"f{n}", "number", RNG.normal(size=size)) for size in (SIZE, ROWS)) for n in range(200)]
    pairs.append((plain(SIZE), plain(ROWS, 9)))

    _, report = judged(*pairs)

    scores, failed, dataset = drift_of(report)
    assert (len(scores), "plain" in failed, dataset) == (30, True, "FAIL")
    assert "of 201" in report.html


def test_the_page_begins_with_the_verdict_and_stands_alone():
    verdict, report = judged((plain(SIZE), plain(ROWS, 9)))

    assert report.html.count("<body") == 1
    assert f"{verdict.statistic:.2f} standard deviations" in report.html
    assert "a note &lt;b&gt;" in report.html
    assert 'src="http' not in report.html


def test_what_is_not_judged_has_a_page_that_says_why():
    pairs = [(plain(SIZE), plain(2))]
    verdict = judge(pairs, TIMES, 0, 1, 10, 0.05)

    report = build_report(verdict, pairs, "flights", [])

    assert "flights: not judged" in report.html
    assert "the window has 2 rows; min_rows is 10" in report.html
    assert json.loads(report.json)["reason"] == verdict.reason
