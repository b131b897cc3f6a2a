"""A world of monitors whose clock is set by the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.monitors import MonitoredWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[MonitoredWorld]:
    made = MonitoredWorld(tmp_path)
    yield made
    made.end()
    made.store.close()
