"""The files of a report: Evidently agrees with the verdict, and no column makes the
report fail.
"""

import html
import json
import re
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.reports import trend
from mlflow_deploy_plugin.watch.reports.log import build_report
from mlflow_deploy_plugin.watch.result import Finding, ReportData
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, LevelSeries, SeriesKey
from tests.support.browser import NEEDS_CHROMIUM, chromium
from tests.support.refusals import mentions
from tests.support.results import FIRST, past_of, result_of

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


def columns_of(files):
    """Return the columns that Evidently's JSON describes."""
    document = json.loads(files["evidently.json"])
    return {
        metric["config"]["column"] for metric in document["metrics"] if "column" in metric["config"]
    }


def test_evidently_describes_the_columns_and_leaves_the_verdict_to_the_monitor():
    result = result_of(plain=9.0, trap=0.5)
    left = plain(SIZE)
    right = plain(ROWS, 2.0)
    pairs = [(left, right), (text(["a", "b", None], SIZE), text(["a", "b"]))]

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
        r"^ *var (?:additional_graphs_)?metric_.*$", str(files["report.html"]), re.MULTILINE
    )
    assert "trap" in "".join(drawn)
    assert not any(
        word in text.lower()
        for word, text in product(("drift", "threshold"), (*drawn, files["evidently.json"]))
    )


DRAWN = 5
"""The number of columns that Evidently draws."""
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


@pytest.mark.long
@pytest.mark.parametrize("traps", [[*TRAPS][first::3] for first in range(3)])
def test_no_column_kills_the_report(traps):
    """Reports with all difficult columns of FACTS, and a normal column."""
    pairs = [
        (replace(TRAPS[name][0], name=name), replace(TRAPS[name][1], name=name)) for name in traps
    ]
    result = result_of(plain=9.0, **scores_of(traps))
    files = build_report(replace(result, report=ReportData([(plain(SIZE), plain(ROWS)), *pairs])))

    assert columns_of(files) == {"plain", *traps} - WITHOUT_VALUES
    assert "<script>alert(1)" not in files["report.html"]


def test_columns_without_a_value_are_not_drawn_and_are_listed_there():
    pairs = [
        (replace(left, name=name), replace(right, name=name))
        for name, (left, right) in TRAPS.items()
        if name in WITHOUT_VALUES
    ]
    result = result_of(plain=9.0, **scores_of(WITHOUT_VALUES))

    drawn = build_report(replace(result, report=ReportData([(plain(SIZE), plain(ROWS)), *pairs])))
    bare = build_report(replace(result, report=ReportData(pairs)))

    assert columns_of(drawn) == {"plain"}
    assert "evidently.json" not in bare
    for files in (drawn, bare):
        charts = str(files["report.html"]).partition("<details class='charts'>")[2]
        assert mentions(charts.partition("</details>")[0], "omit", *WITHOUT_VALUES)


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [
        ("", "a b", "a/b%[x]", "0", "<i>"),
        ("prediction", "target", "index", "</script><script>alert(1)</script>"),
    ],
)
def test_a_column_may_have_any_name(names):
    pairs = [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in names]

    files = build_report(
        replace(result_of(**scores_of(names)), report=ReportData([*pairs, *pairs]))
    )

    assert columns_of(files) == set(names)
    assert "<script>alert(1)" not in files["report.html"]


@pytest.mark.long
def test_of_a_thousand_columns_the_worst_are_drawn_and_the_page_stays_small():
    scores: dict[str, Any] = {"worst": 9.0, **{f"f{n}": 1.0 for n in range(1000)}}
    shared = RNG.normal(size=SIZE)
    pairs = [
        (ColumnValues(name, "number", shared), ColumnValues(name, "number", shared[:ROWS]))
        for name in scores
    ]

    files = build_report(replace(result_of(**scores), report=ReportData(pairs)))

    assert len(columns_of(files)) == DRAWN
    assert "worst" in columns_of(files)
    assert "of 1001" in files["report.html"]
    assert mentions(str(files["report.html"]), "701 more findings", "verdict.json")
    assert len(str(files["report.html"]).encode()) < 6_000_000
    assert len(json.loads(files["verdict.json"])["findings"]) == 1001


def test_the_page_begins_with_the_verdict_and_fetches_nothing():
    result = result_of(plain=9.0, notes=("a note <b>",))

    page = str(
        build_report(replace(result, report=ReportData([(plain(SIZE), plain(ROWS))])))[
            "report.html"
        ]
    )

    assert page.count("<body") == 1
    assert "<p>plain has drifted: 9 SD (threshold 3 SD).</p>" in page
    assert result.reason in page
    assert "a note &lt;b&gt;" in page
    assert 'src="http' not in page


def rows_of(page):
    """Return the cells of each row, with the explanation of a finding as the last
    cell.
    """
    plain_text = re.sub(r"</tr>\s*<tr class=why>", "", page)
    rows = [re.split(r"\s*<t[rdh][^>]*>\s*", row)[2:] for row in plain_text.split("</tr>")]
    return [re.sub("<[^>]*>", "", "|".join(cells)) for cells in rows]


SINCE = "2013-06-29T00:00:00+00:00"
SINCE_END = "2013-06-30T00:00:00+00:00"


@pytest.mark.parametrize("check", ["distribution", "criterion"])
def test_page_shows_the_change_of_a_finding_and_its_start(check):
    change = "0.84 (the window before) → 0.71, lower"
    since: dict[str, Any] = {"since": SINCE, "since_end": SINCE_END, "in_a_row": 3}
    finding = Finding("wind", check, "drift", "on 500 rows", 6.0, 3.0, change=change, **since)

    page = str(build_report(result_of(calm=1.0, findings=(finding,)))["report.html"])

    heads = ["since the window of", "in a row", "measure", "value", "threshold"]
    assert "".join(f"<th>{head}" for head in heads) in page
    rows = rows_of(page)
    assert f"wind|{check}|drift|29 June 2013|3||6|3|{change}; on 500 rows" in rows
    assert "calm|distribution|no drift|||Wasserstein distance|1 SD|3 SD" in rows
    assert mentions(page, "SD: standard deviations")
    calm = build_report(result_of(calm=1.0))["report.html"]
    assert not any(name in calm for name in ("since the window", "in a row"))


def test_an_exact_check_has_no_value_and_no_threshold_and_a_latency_is_in_seconds():
    gone = Finding("wind", "presence", "drift", "not in the window", 1.0, 0.0)
    slow = Finding("p99", "criterion", "violated", "2 % took longer", 0.31, 0.25, unit="s")

    page = str(build_report(result_of(findings=(gone, slow)))["report.html"])

    rows = rows_of(page)
    assert "wind|presence|drift|–|–|not in the window" in rows
    assert "p99|criterion|violated|0.31 s|0.25 s|2 % took longer" in rows
    assert "SD: standard" not in page


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


def test_the_largest_effect_is_first_and_five_findings_are_visible():
    scores: dict[str, Any] = {f"column_{number}": float(number) for number in range(4, 11)}
    page = str(build_report(result_of(**scores, calm=1.0, findings=(SHIFT,)))["report.html"])

    visible, _, hidden = page.partition("<details><summary>4 more findings, 3 of them alarms<")
    one_alarm = str(build_report(result_of(wind=9.0, a=1.0, b=1.0, c=1.0))["report.html"])

    def order(part):
        return [row.partition("|")[0] for row in rows_of(part) if "|dr" in row or "|no dr" in row]

    assert order(visible) == [f"column_{number}" for number in range(10, 5, -1)]
    assert order(hidden) == ["column_5", "column_4", "wind", "calm"]
    assert order(one_alarm.partition("<details><summary>3 more findings<")[0]) == ["wind"]
    assert "more findings" not in build_report(result_of(a=1.0, b=1.0))["report.html"]


def test_second_finding_of_a_column_comes_later():
    twice = result_of(wind=9.0, findings=(SHIFT, replace(SHIFT, subject="temp")))
    page = str(build_report(twice)["report.html"])
    subjects = [row.partition("|")[0] for row in rows_of(page) if "|dr" in row]
    assert sorted(subjects[:2]) == ["temp", "wind"]
    assert subjects[2:] == ["wind"]


def test_the_first_sentence_states_the_change_its_start_and_its_size():
    shifted, broken, gone = (
        str(build_report(result_of(findings=findings))["report.html"])
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


def test_the_alarm_with_the_largest_effect_is_first_and_states_it():
    of_temp = replace(SHIFT, subject="temp", value=2.0)
    findings = (
        replace(SHIFT, effect=0.01, effect_size=0.01, effect_unit="probability of True"),
        replace(of_temp, effect=0.2, effect_size=0.2, effect_unit="probability of True"),
    )

    page = str(build_report(result_of(findings=findings))["report.html"])

    effect = "changes the probability of True by +0.2 on average"
    sentence = "temp has drifted since the window of 29 June 2013: mean 3.2 → 8.9, higher"
    assert f"<p>{sentence}; {effect}; +2 SD; also wind.</p>" in page
    # The table states it again.
    assert page.count(effect) == 2


def test_alarms_without_an_effect_have_a_heading_of_their_own():
    without = replace(SHIFT, subject="depth", effect=0.0, effect_size=0.0, effect_unit="prediction")
    used = replace(SHIFT, effect=152.3, effect_size=152.3, effect_unit="prediction", value=2.0)

    page = str(build_report(result_of(findings=(without, used)))["report.html"])

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
def test_the_page_of_an_alarm_has_the_commands_that_can_follow(fields, commands):
    result = result_of(
        findings=(replace(SHIFT, subject="wind speed"),),
        figures={"false_alarms_per_year": 1.0},
        endpoint_created=SINCE,
        evidence=LEVELS,
    )

    page = str(build_report(replace(result, **fields))["report.html"])

    assert [html.unescape(text) for text in re.findall("<code>(.*?)</code>", page)] == commands


def test_a_usual_distribution_next_to_a_shift_is_explained():
    both, one = (
        str(build_report(result_of(findings=(SHIFT,), **scores))["report.html"])
        for scores in (scores_of(["wind"]), scores_of(["calm"]))
    )

    assert mentions(both, "of wind", "are both true")
    assert "both true" not in one


def test_the_page_shows_when_a_shift_began_and_explains_the_chart_of_its_level():
    interval = ("2013-06-25T00:00:00+00:00", "2013-07-02T00:00:00+00:00")
    finding = replace(SHIFT, since_range=interval)
    starts = (FIRST - timedelta(days=1), FIRST)
    report = ReportData(levels=(LevelSeries("wind, mean", starts, (3.0, 5.0), (3.0, 3.0), 0.5),))

    shifted, calm = (
        build_report(result_of(findings=(finding,), report=data)) for data in (report, ReportData())
    )

    since = "29 June 2013 (95 % interval: 25 June to 1 July 2013, if it was a step)"
    row = f"wind|shift|drift|{since}||mean|+6 SD|–|mean 3.2 → 8.9, higher"
    assert row in rows_of(str(shifted["report.html"]))
    assert mentions(
        str(shifted["report.html"]), "wind, mean: newest 5, usual 2 to 4", "first window of a shift"
    )
    assert "first window of a shift" not in calm["report.html"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_so_few_rows_are_not_drawn(rows):
    files = build_report(
        replace(result_of(plain=9.0), report=ReportData([(plain(SIZE), plain(rows))]))
    )

    assert mentions(str(files["report.html"]), "charts need at least 3 rows")


def test_a_kind_without_rows_to_draw_has_its_findings_and_figures():
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


def test_undecided_finding_is_shown_neither_as_an_alarm_nor_as_fine():
    finding = Finding(
        "accuracy", "criterion", "cannot tell", "0.79, which lies within the interval", 0.79, 0.8
    )
    result = result_of(findings=(finding,), kind="performance", state="cannot tell", figures={})

    page = str(build_report(result)["report.html"])

    assert "<span class='undecided'>cannot tell</span>" in page
    assert re.search(r"<td class='s undecided'[^>]*>cannot tell", page)


def test_unjudged_window_has_a_page_with_the_reason():
    result = result_of(
        state="not judged", reason="the window has 2 rows; min_rows is 200", plain=1.0
    )

    page = str(
        build_report(replace(result, report=ReportData([(plain(SIZE), plain(2))])))["report.html"]
    )

    assert "not judged" in page
    assert result.reason in page


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
@pytest.mark.parametrize("columns", [15, 40])
def test_the_page_is_short_until_its_details_are_opened(columns, tmp_path):
    names = [f"column_{number}" for number in range(columns)]
    pairs = [(plain(SIZE, name=name), plain(ROWS, name=name)) for name in names]
    reason = "Wasserstein distance 0.19 deviations, 0.1 ± 0.05 in the reference's own windows"
    findings = tuple(
        Finding(name, "distribution", "drift", reason, 9.0, 3.0, measure="Wasserstein distance")
        for name in names
    )
    result = result_of(findings=findings, report=ReportData(pairs))
    past = [result_of(-day, findings=findings) for day in range(60, 0, -1)]
    page_file = tmp_path / "report.html"
    page_file.write_text(str(build_report(result, past_of(*past))["report.html"]))

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(page_file.as_uri())
        expect(page.locator(".js-plotly-plot")).to_have_count(DRAWN)
        height = page.evaluate("document.documentElement.scrollHeight")
        expect(page.locator(".js-plotly-plot").first).not_to_be_visible()
        page.get_by_text(f"{columns - 5} more findings").click()
        with_findings = page.evaluate("document.documentElement.scrollHeight")
        page.get_by_text("Evidently's charts").click()
        expect(page.locator(".js-plotly-plot").first).to_be_visible()

    assert height < 2_500
    assert with_findings < 6_000


@pytest.mark.long
@NEEDS_CHROMIUM[0]
@NEEDS_CHROMIUM[1]
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_dark_if_asked_and_never_wider_than_the_screen(width, tmp_path):
    name = "a_column_with_a_long_name_" * 4
    pairs = [
        (plain(SIZE, name=name), plain(ROWS, name=name)),
        (text(["a" * 70, "b"], SIZE), text(["a" * 70, "b"])),
    ]
    result = result_of(
        trap=9.0, findings=(Finding(name, "distribution", "drift", "x" * 500, 5.0, 3.0),)
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
            "[id^=root_] table, .js-plotly-plot, main table, main img"
        ).evaluate_all("elements => elements.map(element => element.getBoundingClientRect().right)")
        narrowest = min(page.locator("figure img").evaluate_all("all => all.map(e => e.width)"))
        dark = page.evaluate(
            "[document.body, document.querySelector('main')].map(e => getComputedStyle(e).color)"
        )

    assert widest == width
    assert max(edges) <= width
    assert trend.LABEL_POINTS / 72 / trend.WIDTH * narrowest >= 12  # The pixels of a label.
    assert dark == ["rgb(255, 255, 255)"] * 2
    assert [url for url in fetched if not url.startswith(("file:", "data:", "blob:"))] == []
