"""The record of the structure only improves, and a message names the figure that violates it."""

import pytest

from tests.structure import Figure, Record, improved, violations

RECORD: Record = {"figures": {"modules": 300, "tested, %": 90}}


def figures(modules: float, tested: float) -> dict[str, Figure]:
    return {"modules": Figure(modules, 280), "tested, %": Figure(tested, 80, higher=True)}


def test_better_figures_are_recorded() -> None:
    assert violations(RECORD, figures(290, 95)) == []
    assert improved(RECORD, figures(290, 95)) == {"figures": {"modules": 290, "tested, %": 95}}


@pytest.mark.parametrize(
    ("found", "words"),
    [(figures(301, 90), ["modules", "301", "300", "280"]), (figures(300, 79), ["tested, %", "79", "90", "80"])],
    ids=["a figure", "a share"],
)
def test_a_worse_figure_is_named_and_not_recorded(found: dict[str, Figure], words: list[str]) -> None:
    (line,) = violations(RECORD, found)

    assert [word for word in words if word not in line] == []
    assert improved(RECORD, found) == RECORD


def test_a_figure_may_get_worse_while_it_meets_its_target_but_the_record_stays() -> None:
    assert violations(RECORD, figures(270, 85)) == []
    assert improved(RECORD, figures(270, 85))["figures"]["tested, %"] == 90
