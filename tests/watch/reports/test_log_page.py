"""The files of a report: Evidently agrees with the verdict, and no column makes the
report fail.
"""

import html
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.reports import trend
from mlflow_deploy_plugin.watch.reports.log import build_report
from mlflow_deploy_plugin.watch.result import Finding, ReportData
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, SeriesKey
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.refusals import mentions
from tests.support.results import past_of, result_of

SIZE = 1000
ROWS = 40
RNG = np.random.default_rng(0)


def number(values, size=ROWS):
    return ColumnValues("trap", "number", np.resize(np.asarray(values, dtype=np.float64), size))


def text(values, size=ROWS):
    return ColumnValues("trap", "category", np.resize(np.array(values, dtype=object), size))


def plain(size, shift=0.0, name="plain"):
    return ColumnValues(name, "number", RNG.normal(shift, 1, size))


def scores_of(names):
    return dict.fromkeys(names, 1.0)


def page_of(result):
    return str(build_report(result)["report.html"])


def columns_of(files):
    """Return the columns that Evidently's JSON describes."""
    document = json.loads(files["evidently.json"])
    return {
        metric["config"]["column"] for metric in document["metrics"] if "column" in metric["config"]
    }


def test_evidently_describes_columns_without_a_verdict():
    result = result_of(plain=9.0, trap=0.5)
    left = plain(SIZE)
    right = plain(ROWS, 2.0)
    pairs = [(left, right), (text(["a", "b", None], SIZE), text(["a", "b"]))]

    files = build_report(replace(result, report=ReportData(pairs)))

    document = json.loads(files["evidently.json"])
    means = [
        metric["value"]
        for metric in document["metrics"]
        if metric["metric_name"].startswith("MeanValue")
    ]
    assert means == [pytest.approx(right.values.mean())]
    assert columns_of(files) == {"plain", "trap"}
    assert document["tests"] == []
    page = str(files["report.html"])
    drawn = "".join(re.findall(r"^ *var \w*metric_.*$", page, re.MULTILINE))
    assert "trap" in drawn
    assert 'src="http' not in page
    assert not re.search("drift|threshold", (drawn + str(files["evidently.json"])).lower())


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


WITHOUT_VALUES = {"no value in the window", "no value in the reference", "no value at all"}


ODD_NAMES = ["", "a b", "a/b%[x]", "0", "<i>", "prediction", "target", "index"]
ODD_NAMES += ["</script><script>alert(1)</script>"]


@pytest.mark.long
@pytest.mark.parametrize("group", range(5))
def test_columns_of_any_value_and_name(group):
    names = [*TRAPS][group::5]
    odd_names = ODD_NAMES[group::5]
    pairs = [
        (replace(left, name=name), replace(right, name=name))
        for name, (left, right) in TRAPS.items()
        if name in names
    ]
    pairs += [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in odd_names]
    result = result_of(**scores_of([*names, *odd_names]))
    files = build_report(replace(result, report=ReportData(pairs)))

    assert columns_of(files) == {*names, *odd_names} - WITHOUT_VALUES
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.parametrize("drawn", [(), pytest.param(("plain",), marks=pytest.mark.long)])
def test_columns_without_values_are_listed(drawn):
    pairs = [
        (replace(left, name=name), replace(right, name=name))
        for name, (left, right) in TRAPS.items()
        if name in WITHOUT_VALUES
    ]
    pairs += [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in drawn]

    files = build_report(
        replace(result_of(**scores_of([*drawn, *WITHOUT_VALUES])), report=ReportData(pairs))
    )

    assert ("evidently.json" in files) == bool(drawn)
    charts = str(files["report.html"]).partition("<details class='charts'>")[2]
    assert mentions(charts.partition("</details>")[0], "omit", *WITHOUT_VALUES)


@pytest.mark.long
def test_worst_of_a_thousand_columns_are_drawn():
    scores: dict[str, Any] = {"worst": 9.0, **{f"f{n}": 1.0 for n in range(1000)}}
    shared = RNG.normal(size=SIZE)
    pairs = [
        (ColumnValues(name, "number", shared), ColumnValues(name, "number", shared[:ROWS]))
        for name in scores
    ]

    files = build_report(replace(result_of(**scores), report=ReportData(pairs)))

    page = str(files["report.html"])
    assert len(columns_of(files) | {"worst"}) == 5
    assert mentions(page, "of 1001", "701 more findings", "verdict.json")
    assert len(page) < 6_000_000
    assert len(json.loads(files["verdict.json"])["findings"]) == 1001


def rows_of(page):
    """Return the cells of each row, with the explanation of a finding as the last
    cell.
    """
    plain_text = re.sub(r"</tr>\s*<tr class=why>", "", page)
    rows = [re.split(r"\s*<t[rdh][^>]*>\s*", row)[2:] for row in plain_text.split("</tr>")]
    return [re.sub("<[^>]*>", "", "|".join(cells)) for cells in rows]


SINCE = "2013-06-29T00:00:00+00:00"
SINCE_END = "2013-06-30T00:00:00+00:00"


def test_findings_are_rows_of_the_page():
    change = "0.84 (the window before) → 0.71, lower"
    since: dict[str, Any] = {"since": SINCE, "since_end": SINCE_END, "in_a_row": 3}
    findings = (
        Finding("wind", "criterion", "drift", "on 500 rows", 6.0, 3.0, change=change, **since),
        Finding("humid", "presence", "drift", "not in the window", 1.0, 0.0),
        Finding("p99", "criterion", "violated", "2 % took longer", 0.31, 0.25, unit="s"),
    )

    page, calm = (page_of(result_of(calm=1.0, findings=given)) for given in (findings, ()))

    assert {
        f"wind|criterion|drift|29 June 2013|3||6|3|{change}; on 500 rows",
        "humid|presence|drift||||–|–|not in the window",
        "p99|criterion|violated||||0.31 s|0.25 s|2 % took longer",
        "calm|distribution|no drift|||Wasserstein distance|1 SD|3 SD",
    } <= {*rows_of(page)}
    assert not any(name in calm for name in ("since the window", "in a row"))


SHIFT = Finding(
    "wind",
    "shift",
    "drift",
    "",
    6.0,
    since=SINCE,
    since_end=SINCE_END,
    change="mean 3.2 → 8.9, higher",
    measure="mean",
    unit="SD",
)


def test_five_largest_findings_are_visible():
    scores: dict[str, Any] = {f"column_{number}": float(number) for number in range(4, 11)}
    page = page_of(result_of(**scores, calm=1.0, findings=(SHIFT,)))

    visible, _, hidden = page.partition("<details><summary>4 more findings, 3 of them alarms<")

    def order(part):
        return [row.partition("|")[0] for row in rows_of(part) if "|dr" in row or "|no dr" in row]

    assert order(visible) == [f"column_{number}" for number in range(10, 5, -1)]
    assert order(hidden) == ["column_5", "column_4", "wind", "calm"]
    assert "more findings" not in page_of(result_of(a=1.0, b=1.0))


def test_first_sentence_states_the_change():
    shifted, broken, gone = (
        page_of(result_of(findings=findings))
        for findings in (
            (SHIFT, replace(SHIFT, segment="carrier=AA")),
            (Finding("p99", "criterion", "violated", "slow", 0.31, 0.25, unit="s"),),
            (Finding("wind", "presence", "drift", "not in the window", 1.0, 0.0, change="gone"),),
        )
    )

    sentence = "wind has drifted since the window of 29 June 2013: mean 3.2 → 8.9, higher; +6 SD"
    assert f"<p>{sentence}; also wind (carrier=AA).</p>" in shifted
    assert "<p>p99 has violated its requirement: 0.31 s (threshold 0.25 s).</p>" in broken
    assert "<p>wind has drifted: gone; not in the window.</p>" in gone


def test_alarms_without_effect_are_separate():
    without = replace(SHIFT, subject="depth", effect=0.0, effect_size=0.0, effect_unit="prediction")
    used = replace(SHIFT, effect=152.3, effect_size=152.3, effect_unit="prediction", value=2.0)

    page = page_of(result_of(findings=(without, used)))

    main, _, rest = page.partition("<summary>Drift without an effect on the predictions: 1<")
    assert mentions(main, "wind has drifted", "by +150 on", "without an effect on the predictions")
    assert ("<td>wind" in main, "<td>depth" in main) == (True, False)
    assert "<td>depth" in rest


ACCEPT = "onnxserve monitor accept flights daily --column 'wind speed'"
RETRAIN = "onnxserve retrain run flights --monitor daily"
ROLLBACK = "onnxserve rollback flights"


LEVELS = Evidence(levels={SeriesKey("wind speed", "level"): 1.0})


@pytest.mark.parametrize(
    ("fields", "commands"),
    [
        ({}, [ACCEPT, RETRAIN, ROLLBACK]),
        ({"figures": {}}, [RETRAIN, ROLLBACK]),
        ({"evidence": Evidence()}, [RETRAIN, ROLLBACK]),
        ({"kind": "service_level"}, [ROLLBACK]),
        ({"kind": "shadow"}, []),
        ({"tried": "min_rows=50"}, []),
        ({"endpoint_created": ""}, []),
    ],
)
def test_page_has_the_next_commands(fields, commands):
    result = result_of(
        findings=(replace(SHIFT, subject="wind speed"),),
        figures={"false_alarms_per_year": 1.0},
        endpoint_created=SINCE,
        evidence=LEVELS,
    )

    page = page_of(replace(result, **fields))

    assert [html.unescape(text) for text in re.findall("<code>(.*?)</code>", page)] == commands


def test_few_rows_are_not_drawn():
    result = replace(result_of(plain=9.0), report=ReportData([(plain(SIZE), plain(2))]))

    assert mentions(page_of(result), "charts need at least 3 rows")


def test_report_without_rows_has_findings():
    finding = Finding("accuracy", "criterion", "cannot tell", "0.79 < 0.80", 0.79, 0.8, "c=AA")
    result = result_of(
        findings=(finding,),
        kind="performance",
        state="cannot tell",
        figures={"accuracy": 0.79, "auc": float("nan")},
        notes=("a note <b>",),
        report=ReportData(artifacts={"sketches.parquet": b"PAR1"}),
    )

    files = build_report(result)

    page = str(files["report.html"])
    assert mentions(page, "c=AA", "0.79 &lt; 0.80", "a note &lt;b&gt;")
    assert re.search(r"<td class='s undecided'[^>]*>cannot tell", page)
    document = json.loads(files["verdict.json"])
    assert document["figures"] == {"accuracy": 0.79, "auc": None}
    assert document["findings"][0]["segment"] == "c=AA"
    assert files["sketches.parquet"] == b"PAR1"


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_dark_and_fits_screens(width, tmp_path):
    name = "a_column_with_a_long_name_" * 4
    pairs = [
        (plain(SIZE, name=name), plain(ROWS, name=name)),
        (text(["a" * 70, "b"], SIZE), text(["a" * 70, "b"])),
    ]
    finding = Finding(name, "distribution", "drift", "x" * 500, 5.0, 3.0)
    result = result_of(trap=9.0, findings=(finding,), report=ReportData(pairs))
    file = tmp_path / "report.html"
    file.write_text(str(build_report(result, past_of(result_of(-1, trap=0.5)))["report.html"]))

    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
        fetched: list[str] = []
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(file.as_uri())
        expect(page.locator(".js-plotly-plot")).to_have_count(2)
        expect(page.locator(".js-plotly-plot").first).not_to_be_visible()
        widest = page.evaluate("document.documentElement.scrollWidth")
        parts = page.locator("[id^=root_] table, .js-plotly-plot, main table, main img")
        edges = parts.evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        narrowest = min(page.locator("figure img").evaluate_all("all => all.map(e => e.width)"))
        dark = page.evaluate("getComputedStyle(document.querySelector('main')).color")

    assert widest == width
    assert max(edges) <= width
    assert trend.LABEL_POINTS / 72 / trend.WIDTH * narrowest >= 12  # The pixels of a label.
    assert dark == "rgb(255, 255, 255)"
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
