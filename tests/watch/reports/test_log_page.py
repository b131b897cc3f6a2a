"""The files of a report: Evidently agrees with the verdict, and no column makes the
report fail.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.reports.log import build_report
from mlflow_deploy_plugin.watch.result import Check, Finding, ReportData
from mlflow_deploy_plugin.watch.sequential.evidence import LevelSeries
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.refusals import mentions
from tests.support.results import FIRST, past_of, result_of

SIZE = 1000
ROWS = 40
RNG = np.random.default_rng(0)


def number(values: list[Any], size: int = ROWS) -> ColumnValues:
    return ColumnValues(
        "trap",
        "number",
        np.resize(np.asarray(values, dtype=np.float64), size),
    )


def text(values: list[Any], size: int = ROWS) -> ColumnValues:
    return ColumnValues(
        "trap",
        "category",
        np.resize(np.array(values, dtype=object), size),
    )


def plain(size: int, shift: float = 0.0, name: str = "plain") -> ColumnValues:
    return ColumnValues(name, "number", RNG.normal(shift, 1, size))


def scores_of(names: Iterable[str]) -> dict[str, Any]:
    return dict.fromkeys(names, 1.0)


def columns_of(files: Mapping[str, str | bytes]) -> set[str]:
    """Return the columns that Evidently's JSON describes."""
    document = json.loads(files["evidently.json"])
    return {
        metric["config"]["column"] for metric in document["metrics"] if "column" in metric["config"]
    }


def test_evidently_describes_the_columns_and_leaves_the_verdict_to_the_monitor() -> None:
    result = result_of(plain=9.0, trap=0.5)
    left = plain(SIZE)
    right = plain(ROWS, 2.0)
    pairs = [
        (left, right),
        (text(["a", "b", None], SIZE), text(["a", "b"])),
    ]

    files = build_report(replace(result, report=ReportData(pairs)))

    document = json.loads(files["evidently.json"])
    means = {
        m["config"]["column"]: m["value"]
        for m in document["metrics"]
        if m["metric_name"].startswith("MeanValue")
    }
    assert means == {"plain": pytest.approx(right.values.mean())}
    assert columns_of(files) == {"plain", "trap"}
    assert document["tests"] == []
    drawn = re.findall(
        r"^ *var (?:additional_graphs_)?metric_.*$",
        str(files["report.html"]),
        re.MULTILINE,
    )
    assert "trap" in "".join(drawn)
    assert not any(
        word in text.lower()
        for word, text in product(("drift", "threshold"), (*drawn, files["evidently.json"]))
    )


TRAPS = {
    "no value in the window": (
        number([1, 2, np.nan], SIZE),
        number([np.nan]),
    ),
    "no value in the reference": (
        number([np.nan], SIZE),
        number([1, 2]),
    ),
    "no value at all": (text([None], SIZE), text([None])),
    "constant": (number([3], SIZE), number([3])),
    "infinities": (
        number([np.inf, 1, 2], SIZE),
        number([-np.inf, 1, 2]),
    ),
    "huge numbers": (
        number([1e300, -1e300, 1], SIZE),
        number([1e300]),
    ),
    "a large constant": (number([1.7e18], SIZE), number([1.7e18])),
    "ids": (
        text([f"id{n}" for n in range(SIZE)], SIZE),
        text([f"x{n}" for n in range(ROWS)]),
    ),
    "odd texts": (
        text(["ä" * 5000, "", " "], SIZE),
        text(["<script>alert(1)</script>"]),
    ),
    "text that became numbers": (
        text(["1", "2"], SIZE),
        number([1, 2]),
    ),
    "a third missing": (
        number([1, 2, 3] * 3 + [np.nan], SIZE),
        number([1, np.nan, np.nan]),
    ),
}


@pytest.mark.long
def test_no_column_kills_the_report() -> None:
    """A report with all difficult columns of FACTS, and a normal column."""
    pairs = [
        (
            ColumnValues(name, left.kind, left.values),
            ColumnValues(name, right.kind, right.values),
        )
        for name, (left, right) in TRAPS.items()
    ]
    files = build_report(
        replace(
            result_of(plain=9.0, **scores_of(TRAPS)),
            report=ReportData([(plain(SIZE), plain(ROWS)), *pairs]),
        ),
    )

    assert columns_of(files) == {"plain", *TRAPS}
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.long
def test_a_column_may_have_any_name() -> None:
    names = [
        "",
        "a b",
        "a/b%[x]",
        "prediction",
        "target",
        "index",
        "0",
        "<i>",
        "</script><script>alert(1)</script>",
    ]
    pairs = [
        (
            plain(SIZE, name=name),
            plain(ROWS, name=name),
        )
        for name in names
    ]

    files = build_report(
        replace(
            result_of(**scores_of(names)),
            report=ReportData([*pairs, *pairs]),
        ),
    )

    assert columns_of(files) == set(names)
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.long
def test_of_a_thousand_columns_the_worst_are_drawn_and_the_page_stays_small() -> None:
    scores: dict[str, Any] = {
        "worst": 9.0,
        **{f"f{n}": 1.0 for n in range(1000)},
    }
    shared = RNG.normal(size=SIZE)
    pairs = [
        (
            ColumnValues(name, "number", shared),
            ColumnValues(name, "number", shared[:ROWS]),
        )
        for name in scores
    ]

    files = build_report(replace(result_of(**scores), report=ReportData(pairs)))

    assert len(columns_of(files)) == 30
    assert "worst" in columns_of(files)
    assert "of 1001" in files["report.html"]
    assert mentions(str(files["report.html"]), "701 more findings", "verdict.json")
    assert len(str(files["report.html"]).encode()) < 6_000_000
    assert len(json.loads(files["verdict.json"])["findings"]) == 1001


def test_the_page_begins_with_the_verdict_and_fetches_nothing() -> None:
    result = result_of(plain=9.0, notes=("a note <b>",))

    page = str(
        build_report(
            replace(
                result,
                report=ReportData([(plain(SIZE), plain(ROWS))]),
            )
        )["report.html"],
    )

    assert page.count("<body") == 1
    assert result.reason in page
    assert "a note &lt;b&gt;" in page
    assert 'src="http' not in page


SINCE = "2013-06-29T00:00:00+00:00"
SINCE_END = "2013-06-30T00:00:00+00:00"


@pytest.mark.parametrize("check", ["distribution", "criterion"])
def test_page_shows_the_change_of_a_finding_and_its_start(check: Check) -> None:
    change = "0.84 (the window before) → 0.71, lower"
    since: dict[str, Any] = {"since": SINCE, "since_end": SINCE_END, "in_a_row": 3}
    finding = Finding(
        "wind",
        check,
        "drift",
        "on 500 rows",
        6.0,
        3.0,
        change=change,
        **since,
    )

    page = str(build_report(result_of(calm=1.0, findings=(finding,)))["report.html"])

    heads = ["since the window of", "in a row", "measure", "value", "threshold", "change", "reason"]
    assert "".join(f"<th>{head}" for head in heads) in page in page
    rows = ["|".join(re.split(r"\s*<t[rdh][^>]*>\s*", row)[2:]) for row in page.split("</tr>")]
    assert f"wind|{check}|drift|29 June 2013|3||6|3|{change}|on 500 rows" in rows
    assert "calm|distribution|no drift|||Wasserstein distance|1 SD|3 SD||" in rows
    assert mentions(page, "SD: standard deviations")
    calm = build_report(result_of(calm=1.0))["report.html"]
    assert not any(name in calm for name in ("since the window", "in a row", "<th>change"))


def test_an_exact_check_has_no_value_and_no_threshold_and_a_latency_is_in_seconds() -> None:
    gone = Finding("wind", "presence", "drift", "not in the window", 1.0, 0.0)
    slow = Finding("p99", "criterion", "violated", "2 % took longer", 0.31, 0.25, unit="s")

    page = str(build_report(result_of(findings=(gone, slow)))["report.html"])

    rows = ["|".join(re.split(r"\s*<t[rdh][^>]*>\s*", row)[2:]) for row in page.split("</tr>")]
    assert "wind|presence|drift|–|–|not in the window" in rows
    assert "p99|criterion|violated|0.31 s|0.25 s|2 % took longer" in rows
    assert "SD: standard" not in page


def test_the_page_shows_when_a_shift_began_and_explains_the_chart_of_its_level() -> None:
    interval = ("2013-06-25T00:00:00+00:00", "2013-07-02T00:00:00+00:00")
    finding = Finding(
        "wind",
        "shift",
        "drift",
        "",
        6.0,
        3.0,
        since=SINCE,
        since_end=SINCE_END,
        since_range=interval,
    )
    starts = (FIRST - timedelta(days=1), FIRST)
    report = ReportData(
        levels=(
            LevelSeries(
                "wind, mean",
                starts,
                (3.0, 5.0),
                (3.0, 3.0),
                0.5,
            ),
        )
    )

    shifted, calm = (
        build_report(result_of(findings=(finding,), report=data)) for data in (report, ReportData())
    )

    row = re.sub(
        "<[^>]*>",
        "|",
        str(shifted["report.html"]).rpartition("<tr><td>")[2],
    )
    assert "|29 June 2013 |(95 % interval: 25 June to 1 July 2013)||" in row
    assert "|+6|" in row
    assert mentions(
        str(shifted["report.html"]),
        "wind, mean: newest 5, usual 3 ± 1",
        "first window of a shift",
    )
    assert "first window of a shift" not in calm["report.html"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_so_few_rows_are_not_drawn(rows: int) -> None:
    files = build_report(
        replace(
            result_of(plain=9.0),
            report=ReportData([(plain(SIZE), plain(rows))]),
        ),
    )

    assert mentions(str(files["report.html"]), "charts need at least 3 rows")


def test_a_kind_without_rows_to_draw_has_its_findings_and_figures() -> None:
    finding = Finding("accuracy", "criterion", "violated", "0.71 < 0.80", 0.71, 0.8, "carrier=AA")
    result = result_of(
        findings=(finding, Finding("f1", "criterion", "not judged", "one class only")),
        kind="performance",
        state="violated",
        figures={"accuracy": 0.71, "auc": float("nan")},
    )

    files = build_report(
        replace(result, report=ReportData(artifacts={"sketches.parquet": b"PAR1"}))
    )

    page = files["report.html"]
    assert all(
        words in page
        for words in ("accuracy", "carrier=AA", "0.71 &lt; 0.80", "one class only", "violated")
    )
    document = json.loads(files["verdict.json"])
    assert document["figures"] == {"accuracy": 0.71, "auc": None}
    assert document["findings"][0]["segment"] == "carrier=AA"
    assert files["sketches.parquet"] == b"PAR1"


def test_undecided_finding_is_shown_neither_as_an_alarm_nor_as_fine() -> None:
    finding = Finding(
        "accuracy",
        "criterion",
        "cannot tell",
        "0.79, which lies within the interval",
        0.79,
        0.8,
    )
    result = result_of(
        findings=(finding,),
        kind="performance",
        state="cannot tell",
        figures={},
    )

    page = str(build_report(result)["report.html"])

    assert "<span class='undecided'>cannot tell</span>" in page
    assert re.search(r"<td class='s undecided'[^>]*>cannot tell", page)


def test_unjudged_window_has_a_page_with_the_reason() -> None:
    result = result_of(
        state="not judged",
        reason="the window has 2 rows; min_rows is 200",
        plain=1.0,
    )

    page = str(
        build_report(
            replace(
                result,
                report=ReportData([(plain(SIZE), plain(2))]),
            )
        )["report.html"],
    )

    assert "not judged" in page
    assert result.reason in page


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_dark_if_asked_and_never_wider_than_the_screen(
    width: int,
    tmp_path: Path,
) -> None:
    name = "a_column_with_a_long_name_" * 4
    pairs = [
        (plain(SIZE, name=name), plain(ROWS, name=name)),
        (
            text(["a" * 70, "b"], SIZE),
            text(["a" * 70, "b"]),
        ),
    ]
    result = result_of(
        trap=9.0,
        findings=(Finding(name, "distribution", "drift", "x" * 500, 5.0, 3.0),),
    )
    files = build_report(
        replace(result, report=ReportData(pairs)), past_of(result_of(-1, trap=0.5))
    )
    (tmp_path / "report.html").write_text(str(files["report.html"]))

    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
        fetched: list[str] = []
        page.on("request", lambda request: fetched.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        expect(page.locator(".js-plotly-plot")).to_have_count(2)
        widest = page.evaluate("document.documentElement.scrollWidth")
        edges = page.locator(
            "[id^=root_] table, .js-plotly-plot, main table, main img",
        ).evaluate_all("elements => elements.map(element => element.getBoundingClientRect().right)")
        dark = page.evaluate(
            "[document.body, document.querySelector('main')].map(e => getComputedStyle(e).color)",
        )

    assert widest == width
    assert max(edges) <= width
    assert dark == ["rgb(255, 255, 255)"] * 2
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
