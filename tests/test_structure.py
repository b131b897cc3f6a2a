"""The record of the structure only improves, and a message names the room or the figure that violates it."""

import pytest

from tests.structure import Figure, Record, improved, lines_of_rooms, modules, violations

RECORD: Record = {"figures": {"modules": 300, "tested, %": 90}, "line budgets": {"agent": 100, "server": 200}}


def figures(modules: float, tested: float) -> dict[str, Figure]:
    return {"modules": Figure(modules, 280), "tested, %": Figure(tested, 80, higher=True)}


def test_what_is_better_today_is_recorded() -> None:
    rooms = {"agent": 90, "server": 200}

    assert violations(RECORD, figures(290, 95), rooms) == []
    assert improved(RECORD, figures(290, 95), rooms) == {
        "figures": {"modules": 290, "tested, %": 95},
        "line budgets": {"agent": 90, "server": 200},
    }


@pytest.mark.parametrize(
    ("found", "rooms", "named"),
    [
        (figures(301, 90), {"agent": 100}, ["modules", "301", "300", "280"]),
        (figures(300, 79), {"agent": 100}, ["tested, %", "79", "90", "80"]),
        (figures(300, 90), {"agent": 101}, ["room agent", "101", "100"]),
        (figures(300, 90), {"spool": 1}, ["room spool", "budget 0"]),
    ],
    ids=["a figure", "a share", "a room", "a new room"],
)
def test_what_is_worse_is_named_and_not_recorded(
    found: dict[str, Figure], rooms: dict[str, int], named: list[str]
) -> None:
    (line,) = violations(RECORD, found, rooms)
    after = improved(RECORD, found, rooms)

    assert [word for word in named if word not in line] == []
    assert after["figures"] == RECORD["figures"]
    assert after["line budgets"] in ({"agent": 100}, {})


def test_a_figure_may_get_worse_while_it_meets_its_target_but_the_record_stays() -> None:
    assert violations(RECORD, figures(270, 85), {}) == []
    assert improved(RECORD, figures(270, 85), {})["figures"]["tested, %"] == 90


def test_every_line_of_the_package_belongs_to_a_room() -> None:
    found = modules()
    assert sum(lines_of_rooms(found).values()) == sum(module.lines for module in found)
