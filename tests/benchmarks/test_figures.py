"""README.md, RESULTS.md and `figures.json` agree."""

import re
from itertools import chain

import pytest

from benchmarks import figures

SECTIONS = figures.read()["sections"]
RECORDED = [heading for heading, section in SECTIONS.items() if "printed" in section]
LINK = re.compile(r"RESULTS\.md#([\w-]+)")


def test_pages_have_the_figures_of_the_file():
    written = {heading: section["page"] for heading, section in SECTIONS.items()}
    assert figures.pages() == written, "run python benchmarks/bench.py --pages"


@pytest.mark.parametrize("heading", RECORDED)
def test_numbers_of_recorded_sections_were_printed(heading):
    runs = SECTIONS[heading]["printed"].values()
    known = numbers_in([run["rows"] for run in runs])
    shown = numbers_in(SECTIONS[heading]["page"]["tables"])
    assert [number for number in shown if not figures.is_among(number, known)] == []


def test_figures_of_readme_are_in_results():
    (table,) = SECTIONS[figures.README]["page"]["tables"]
    for row in table:
        first, *cells = row.values()
        head = next(iter(row))
        link = LINK.search(first) or LINK.search(head)
        assert link, f"{first} needs a link to RESULTS.md"
        page = SECTIONS[heading_of(link[1])]["page"]
        known = [*numbers_in(page["tables"]), *figures.numbers(page["lines"])]
        unknown = [one for one in figures.numbers(cells) if not figures.is_among(one, known)]
        assert (first, unknown) == (first, [])


@pytest.mark.parametrize(
    ("number", "known", "is_known"),
    [
        ("45.8", "45.76", True),
        ("45.8", "45.86", False),
        ("33295", "33294.7", True),
        ("7e-16", "7.2e-16", True),
        (".44", "0.4359", True),
        ("0", "0.4", True),
        ("1", "0.4", False),
    ],
)
def test_number_of_a_page_is_a_rounded_one(number, known, is_known):
    assert figures.is_among(number, ["99", known]) is is_known


def test_tables_are_read_by_their_heads():
    text = "| a | b, ms |\n|---|---|\n| x | 1,024; 3.5 (2e-3) |\n\nno row\n\n| c |\n| - |\n| 5 |\n"
    first, second = figures.tables(text)
    assert first == [{"a": "x", "b, ms": "1,024; 3.5 (2e-3)"}]
    assert second == [{"c": "5"}]
    assert figures.numbers(first[0].values()) == ["1024", "3.5", "2e-3"]


def test_columns_need_different_heads():
    with pytest.raises(ValueError, match="ratio"):
        list(figures.tables("| a | ratio | ratio |\n|---|---|---|\n| x | 1 | 2 |\n"))


def numbers_in(tables):
    texts = []
    for row in chain.from_iterable(tables):
        texts += [*row, *row.values()]
    return figures.numbers(texts)


def heading_of(anchor):
    (heading,) = (name for name in SECTIONS if anchor_of(name) == anchor)
    return heading


def anchor_of(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
