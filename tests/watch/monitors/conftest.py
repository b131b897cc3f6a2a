"""A world of monitors whose clock is set by the tests."""

import pytest

from tests.support.monitors import MonitoredWorld


@pytest.fixture
def world(tmp_path):
    made = MonitoredWorld(tmp_path)
    yield made
    made.end()
    made.store.close()
