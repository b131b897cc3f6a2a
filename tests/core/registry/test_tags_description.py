"""Tests of the onnxserve section in a description: it is replaced and bounded, and the
user's text is kept.
"""

import pytest

from mlflow_deploy_plugin.core.registry.tags import MAX_DESCRIPTION_LENGTH, with_description_section

HEAD = ["| monitor | verdict |", "| --- | --- |"]
DRIFT = [*HEAD, "| daily | drift |"]
CALM = [*HEAD, "| daily | no drift |"]


@pytest.mark.parametrize(
    "own", ["", "Trained on a Monday.", "Two\n\nparagraphs.\n\n| a | table |\n| --- | --- |"]
)
def test_the_section_stands_at_the_end_and_is_replaced(own):
    first = with_description_section(own, DRIFT)
    second = with_description_section(first, CALM)

    assert first.startswith(own)
    assert first == first.strip()
    assert DRIFT[-1] in first
    assert second == with_description_section(own, CALM)
    assert with_description_section(second, []) == own


def test_text_written_after_the_section_is_kept():
    changed = with_description_section("Before.", DRIFT) + "\n\nAfter."

    again = with_description_section(changed, CALM)

    assert again.startswith("Before.\n\nAfter.\n\n")
    assert DRIFT[-1] not in again


def test_where_somebody_took_its_end_away_nothing_else_is_lost():
    broken = with_description_section("Before.", DRIFT).replace("<!-- onnxserve: end -->", "Mine.")

    assert with_description_section(broken, []).split() == ["Before.", "Mine."]


def test_it_takes_the_room_that_is_left():
    lines = [*HEAD, *(f"| monitor {number} | {'x' * 400} |" for number in range(50))]

    bounded = with_description_section("Trained on a Monday.", lines)
    full = with_description_section("y" * (MAX_DESCRIPTION_LENGTH - 10), lines)

    assert len(bounded) <= MAX_DESCRIPTION_LENGTH
    assert lines[len(HEAD) + 5] in bounded
    assert full == "y" * (MAX_DESCRIPTION_LENGTH - 10)
