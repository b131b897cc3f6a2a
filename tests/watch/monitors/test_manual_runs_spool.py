"""The wait until captured rows are in the log."""

import os

import pytest

from mlflow_deploy_plugin.core.statedir.files import AGENT, write_state
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.watch.monitors.manual_runs import wait_until_shipped

NO_PROCESS = 2**22 + 1


@pytest.fixture
def segment(tmp_path):
    path = tmp_path / "spool" / "a1.seg"
    path.parent.mkdir()
    path.write_bytes(b"x" * 10)
    return path


def agent(state_dir, pid):
    write_state(state_dir / AGENT, AgentState(pid=pid))


def test_without_a_spool_there_is_nothing_to_wait_for(tmp_path):
    assert wait_until_shipped(tmp_path, 5)


def test_wait_ends_when_the_agent_has_shipped_the_rows_present_at_the_start(tmp_path, segment):
    agent(tmp_path, os.getpid())

    def ship(_):
        segment.write_bytes(b"x" * 99)  # New rows are captured.
        segment.with_suffix(".shipped").write_text("10")

    assert wait_until_shipped(tmp_path, 5, pause=ship)


def test_a_segment_that_is_gone_is_shipped(tmp_path, segment):
    agent(tmp_path, os.getpid())

    assert wait_until_shipped(tmp_path, 5, pause=lambda _: segment.unlink())


def test_a_segment_that_the_agent_deletes_while_the_spool_is_listed_is_in_the_log(tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "deleted.seg").symlink_to(tmp_path / "gone")
    assert wait_until_shipped(tmp_path, 5)


def test_wait_ends_at_its_timeout_or_without_an_agent(tmp_path, segment):
    seconds = iter(range(100))
    agent(tmp_path, os.getpid())
    assert not wait_until_shipped(
        tmp_path, 5, clock=lambda: float(next(seconds)), pause=lambda _: None
    )
    agent(tmp_path, NO_PROCESS)
    assert not wait_until_shipped(
        tmp_path, 1e9, pause=lambda _: pytest.fail("there is no agent to wait for")
    )
