"""The corpus over real sockets: every bad request is refused as it should, and nobody else notices."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.corpus import heads
from tests.server.corpus.case import AnyCase, Route
from tests.server.corpus.cases import CASES
from tests.server.corpus.routes import ALL
from tests.server.corpus.wire import Refused

pytestmark = pytest.mark.parametrize("kind", ["fast", "gthread"])


def failures(check: Callable[[Route], None], routes: tuple[Route, ...]) -> list[str]:
    """Return the failures by route."""
    found = []
    for route in routes:
        try:
            check(route)
        except Refused as error:
            found.append(f"{route.name}: {error}")
    return found


def test_every_route_gives_its_right_answer(tried: dict[str, Any], kind: str) -> None:
    assert failures(tried[kind].wire.check_good, ALL) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_and_the_good_one_after_it_answered(
    tried: dict[str, Any], kind: str, case: AnyCase
) -> None:
    assert failures(lambda route: tried[kind].wire.check(case, route), case.on) == []


@pytest.mark.parametrize("case", heads.PIPELINED, ids=lambda case: case.name)
def test_a_bad_request_behind_a_good_one_does_not_touch_its_answer(
    tried: dict[str, Any], kind: str, case: AnyCase
) -> None:
    assert failures(lambda route: tried[kind].wire.check(case, route, comes_first=True), case.on) == []
