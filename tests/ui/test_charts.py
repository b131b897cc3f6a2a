"""Tests that charts of any values are well-formed, remain within their box and have a
summary in words.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlflow_deploy_plugin.ui.charts import (
    COLOURS,
    HEIGHT,
    WIDTH,
    Series,
    ago_axis,
    duration,
    line_chart,
    nice_top,
    shown,
    since_axis,
)
from mlflow_deploy_plugin.ui.pictures import Pictures
from tests.support.refusals import mentions

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
TEMPLATES = Environment(
    loader=PackageLoader("mlflow_deploy_plugin.ui"), autoescape=True, undefined=StrictUndefined
).get_template("onnxserve_pictures.html")


def chart(*values, limit=None):
    series = [
        Series(f"version {number}", version_values, number)
        for number, version_values in enumerate(values)
    ]
    return line_chart(
        "f-requests",
        "Requests",
        "/s",
        ago_axis(NOON, 3600),
        series,
        limit=limit,
        empty="no requests",
    )


def drawn(chart):
    """Return the chart as on the page, parsed as XML."""
    html = TEMPLATES.render(pictures=Pictures("f", (chart,)))
    return ElementTree.fromstring(f"<div>{html}</div>")


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+) (\S+)", path)]


@given(
    st.lists(st.lists(st.none() | st.floats(), max_size=30), max_size=COLOURS + 2),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.none() | st.floats(0.1, 1000),
)
def test_chart_is_valid_within_its_box(values, name, limit):
    series = [Series(name, line_values, number) for number, line_values in enumerate(values)]
    made = line_chart("f-x", name, "ms", ago_axis(NOON, 3600), series, limit=limit)

    html = drawn(made)

    for line, line_values in zip(made.lines, values, strict=True):
        coordinates = points(line.path)
        assert len(coordinates) == sum(v is not None and v <= 1e12 for v in line_values)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in coordinates)
        assert line.colour < COLOURS
    assert made.limit is None or 0 <= made.limit <= HEIGHT
    (svg,) = html.findall(".//figure//div/svg")
    assert svg.get("aria-label") == made.summary
    assert 0.1 <= made.top < math.inf


@given(st.floats(1e-6, 1e12))
def test_axis_ends_at_a_round_number(value):
    top = nice_top(value)
    assert value <= top <= 2.0001 * value
    assert float(f"{top:.0e}") == pytest.approx(top)


def test_lone_value_between_gaps_is_a_dot():
    assert chart([3.0]).lines[0].path == "M0.0 25.0 h0"
    (line,) = chart([1.0, 2.0, None, 4.0, math.nan]).lines
    assert line.path.split() == ["M0.0", "75.0", "L250.0", "50.0", "M750.0", "0.0", "h0"]
    assert line.last == "–"


def test_summary_has_times_and_figures():
    summary = chart([1.0, 12.0], [None, 0.5]).summary
    assert mentions(summary, "Requests", "2026-11-21 11:00", "12:00 UTC")
    assert mentions(summary, "version 0", "12 /s", "version 1", "0.5 /s")


def test_chart_without_values_is_empty():
    for made in (chart(), chart([]), chart([None, math.inf])):
        assert made.empty == "no requests"
        assert made.ticks == ("0.1", "0.05", "0")
        assert "no requests" in "".join(drawn(made).itertext())


@pytest.mark.parametrize(("unit", "top"), [("/s", 0.1), ("%", 1)])
def test_noise_does_not_fill_the_chart(unit, top):
    noise = line_chart("f-x", "x", unit, ago_axis(NOON, 60), [Series("x", [0.001])])
    assert noise.top == top


def test_limit_is_within_the_chart():
    made = chart([20.0], limit=100.0)
    assert made.top == 100
    assert made.limit == 0


def test_html_in_names_is_escaped():
    made = line_chart("f-x", "<b>", "%", ago_axis(NOON, 60), [Series('"><script>', [1.0])])
    html = drawn(made)
    assert html.find(".//script") is None
    assert html.find(".//path[@data-name]").get("data-name") == '"><script>'  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (2700, "45 min"),
        (9000, "2.5 h"),
        (200_000, "2.31 d"),
    ],
)
def test_durations_are_short(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (None, "ms", "–"),
        (12.345, "ms", "12.3 ms"),
        (1234.5, "ms", "1,234 ms"),
        (4.2e6, "ms", "4.2 M ms"),
        (0.0004, "s", "0.4 ms"),
        (0.1, "s", "100 ms"),
        (0.9996, "s", "1 s"),
        (9.5, "s", "9.5 s"),
    ],
)
def test_numbers_are_short_with_a_unit(value, unit, said):
    assert shown(value, unit) == said


def test_ticks_of_an_axis():
    assert ago_axis(NOON, 3600).ticks == ("60 min ago", "45 min", "30 min", "15 min", "now")
    growing = since_axis(NOON, 300)
    assert growing.ticks == ("start", "2 min", "4 min", "6 min", "8 min")
    assert growing.end == NOON + timedelta(minutes=8)
    assert since_axis(NOON, 20 * 86400).ticks[-1] == "20 d"
