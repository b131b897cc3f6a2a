"""The files of a report: Evidently agrees with the verdict, and no column makes the report fail."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.monitoring.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.monitoring.reports.log import build_report
from mlflow_deploy_plugin.monitoring.result import Check, Finding, ReportData
from tests.support.refusals import mentions
from tests.support.results import result_of

SIZE, ROWS = 1000, 40
RNG = np.random.default_rng(0)


def number(values: list[Any], size: int = ROWS) -> ColumnValues:
    return ColumnValues("trap", "number", np.resize(np.asarray(values, dtype=np.float64), size))


def text(values: list[Any], size: int = ROWS) -> ColumnValues:
    return ColumnValues("trap", "category", np.resize(np.array(values, dtype=object), size))


def plain(size: int, shift: float = 0.0, name: str = "plain") -> ColumnValues:
    return ColumnValues(name, "number", RNG.normal(shift, 1, size))


def scores_of(names: Iterable[str]) -> dict[str, Any]:
    return dict.fromkeys(names, 1.0)


def drift_of(files: Mapping[str, str | bytes]) -> tuple[dict[str, float], set[Any], str]:
    """Return scores, drifted columns and the dataset verdict from Evidently's JSON."""
    document = json.loads(files["evidently.json"])
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


@pytest.mark.long
@pytest.mark.parametrize("score", [1.0, 9.0])
def test_evidently_and_the_verdict_say_the_same(score: float) -> None:
    given = result_of(plain=score, trap=0.5)
    pairs = [(plain(SIZE), plain(ROWS)), (text(["a", "b", None], SIZE), text(["a", "b"]))]

    scores, failed, dataset = drift_of(build_report(replace(given, report=ReportData(pairs))))

    assert scores == {"plain": score, "trap": 0.5}
    assert failed == ({"plain"} if score > 3 else set())
    assert dataset == ("FAIL" if given.state == "drift" else "SUCCESS")


TRAPS = {
    "no value in the window": (number([1, 2, np.nan], SIZE), number([np.nan])),
    "no value in the reference": (number([np.nan], SIZE), number([1, 2])),
    "no value at all": (text([None], SIZE), text([None])),
    "constant": (number([3], SIZE), number([3])),
    "infinities": (number([np.inf, 1, 2], SIZE), number([-np.inf, 1, 2])),
    "huge numbers": (number([1e300, -1e300, 1], SIZE), number([1e300])),
    "a large constant": (number([1.7e18], SIZE), number([1.7e18])),
    "ids": (text([f"id{n}" for n in range(SIZE)], SIZE), text([f"x{n}" for n in range(ROWS)])),
    "odd texts": (text(["ä" * 5000, "", " "], SIZE), text(["<script>alert(1)</script>"])),
    "text that became numbers": (text(["1", "2"], SIZE), number([1, 2])),
    "a third missing": (number([1, 2, 3] * 3 + [np.nan], SIZE), number([1, np.nan, np.nan])),
}


@pytest.mark.long
def test_no_column_kills_the_report() -> None:
    """A report with all difficult columns of FACTS, and a normal column."""
    pairs = [
        (ColumnValues(name, left.kind, left.values), ColumnValues(name, right.kind, right.values))
        for name, (left, right) in TRAPS.items()
    ]
    files = build_report(
        replace(result_of(plain=9.0, **scores_of(TRAPS)), report=ReportData([(plain(SIZE), plain(ROWS)), *pairs]))
    )

    assert set(drift_of(files)[0]) == {"plain", *TRAPS}
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.long
def test_a_column_may_have_any_name() -> None:
    names = ["", "a b", "a/b%[x]", "prediction", "target", "index", "0", "<i>", "</script><script>alert(1)</script>"]
    pairs = [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in names]

    files = build_report(replace(result_of(**scores_of(names)), report=ReportData([*pairs, *pairs])))

    assert set(drift_of(files)[0]) == set(names)
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.long
def test_of_a_thousand_columns_the_worst_are_drawn_and_the_page_stays_small() -> None:
    scores: dict[str, Any] = {"worst": 9.0, **{f"f{n}": 1.0 for n in range(1000)}}
    shared = RNG.normal(size=SIZE)
    pairs = [(ColumnValues(name, "number", shared), ColumnValues(name, "number", shared[:ROWS])) for name in scores]

    files = build_report(replace(result_of(**scores), report=ReportData(pairs)))

    found, failed, _ = drift_of(files)
    assert (len(found), failed) == (30, {"worst"})
    assert "of 1001" in files["report.html"]
    assert mentions(str(files["report.html"]), "701 more findings", "verdict.json")
    assert len(str(files["report.html"]).encode()) < 6_000_000
    assert len(json.loads(files["verdict.json"])["findings"]) == 1001


def test_the_page_begins_with_the_verdict_and_fetches_nothing() -> None:
    given = result_of(plain=9.0, notes=("a note <b>",))

    page = str(build_report(replace(given, report=ReportData([(plain(SIZE), plain(ROWS))])))["report.html"])

    assert page.count("<body") == 1
    assert given.reason in page
    assert "a note &lt;b&gt;" in page
    assert 'src="http' not in page


def test_the_page_has_the_threshold_of_the_verdict_and_no_other() -> None:
    pairs = [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in ("wind", "calm")]

    page = str(build_report(replace(result_of(wind=9.0, calm=0.5), report=ReportData(pairs)))["report.html"])

    assert re.findall(r"(\w+) threshold is ([\d.]+\d)", page) == [("drift", "3.00")] * 2
    assert "Actual value 0.500" in page
    assert "Less 0" not in page


SINCE = "2013-06-29T00:00:00+00:00"


@pytest.mark.parametrize("check", ["distribution", "criterion"])
def test_the_page_says_what_became_of_a_finding_and_since_when(check: Check) -> None:
    change = "0.84 (the window before) → 0.71, lower"
    found = Finding("wind", check, "drift", "on 500 rows", 6.0, 3.0, change=change, since=SINCE, in_a_row=3)

    page = str(build_report(result_of(calm=1.0, findings=(found,)))["report.html"])

    heads = ["since (UTC)", "in a row", "value", "threshold", "change", "reason"]
    assert "".join(f"<th>{head}" for head in heads) in page in page
    rows = ["|".join(re.split(r"\s*<t[rdh][^>]*>\s*", row)[2:]) for row in page.split("</tr>")]
    assert f"wind|{check}|drift|2013-06-29|3|6|3|{change}|on 500 rows" in rows
    assert "calm|distribution|no drift|||1|3||" in rows
    calm = build_report(result_of(calm=1.0))["report.html"]
    assert not any(name in calm for name in ("since (UTC)", "in a row", "<th>change"))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_so_few_rows_are_not_drawn(rows: int) -> None:
    files = build_report(replace(result_of(plain=9.0), report=ReportData([(plain(SIZE), plain(rows))])))

    assert mentions(str(files["report.html"]), "charts need at least 3 rows")


def test_a_kind_without_rows_to_draw_has_its_findings_and_figures() -> None:
    found = Finding("accuracy", "criterion", "violated", "0.71 < 0.80", 0.71, 0.8, "carrier=AA")
    given = result_of(
        findings=(found, Finding("f1", "criterion", "not judged", "one class only")),
        kind="performance",
        state="violated",
        figures={"accuracy": 0.71, "auc": float("nan")},
    )

    files = build_report(replace(given, report=ReportData(artifacts={"sketches.parquet": b"PAR1"})))

    page = files["report.html"]
    assert all(said in page for said in ("accuracy", "carrier=AA", "0.71 &lt; 0.80", "one class only", "violated"))
    document = json.loads(files["verdict.json"])
    assert document["figures"] == {"accuracy": 0.71, "auc": None}
    assert document["findings"][0]["segment"] == "carrier=AA"
    assert files["sketches.parquet"] == b"PAR1"


def test_what_cannot_be_told_is_shown_neither_as_an_alarm_nor_as_fine() -> None:
    found = Finding("accuracy", "criterion", "cannot tell", "0.79, which lies within the interval", 0.79, 0.8)
    given = result_of(findings=(found,), kind="performance", state="cannot tell", figures={})

    page = str(build_report(given)["report.html"])

    assert "<span class='undecided'>cannot tell</span>" in page
    assert re.search(r"<td class='s undecided'[^>]*>cannot tell", page)


def test_what_is_not_judged_has_a_page_that_says_why() -> None:
    given = result_of(state="not judged", reason="the window has 2 rows; min_rows is 200", plain=1.0)

    page = str(build_report(replace(given, report=ReportData([(plain(SIZE), plain(2))])))["report.html"])

    assert "not judged" in page
    assert given.reason in page
