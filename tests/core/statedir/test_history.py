"""The last hour and day of a server, as written by its agent and returned by any
worker.
"""

import errno
from pathlib import Path

import orjson
import pytest

from mlflow_deploy_plugin.core.statedir import history
from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.core.statedir.history import HistoryWriter, read_history
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    parse_server_history,
)

OF_VERSION = ("e", "v", "m", "7")


class Machine:
    """A state folder with a server's counters, and the clocks of its agent."""

    def __init__(self, folder):
        self.folder = folder
        self._runs = 0
        self.now = 0.0
        self.wall = 1_700_000_000.0
        self.metrics = self.start_server()

    def start_server(self):
        self._runs += 1
        counted = self.folder / f"run-{self._runs}"
        counted.mkdir()
        (self.folder / METRICS).unlink(missing_ok=True)
        (self.folder / METRICS).symlink_to(counted)
        self.metrics = Metrics(counted)
        return self.metrics

    def agent(self):
        """Return an agent that has read the counts at its start."""
        agent = HistoryWriter(self.folder, lambda: self.wall + self.now, lambda: self.now)
        agent.round()
        return agent

    def answer(self, requests, status="200", seconds=0.003, protocol="v2"):
        for _ in range(requests):
            self.metrics.count_request((*OF_VERSION, protocol, status), seconds)

    def hour(self):
        return parse_server_history(read_history(self.folder, "hour"))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def rounds(machine, agent, seconds):
    """Run the agent's loop, which calls `round` every two seconds."""
    until = machine.now + seconds
    while machine.now < until:
        machine.now += 2
        agent.round()


def test_line_counts_requests_since_last_line(machine):
    machine.answer(5)
    agent = machine.agent()
    machine.answer(30)
    machine.answer(2, "500", seconds=0.2)
    machine.answer(1, "499")
    machine.answer(3, "400")
    machine.answer(40, seconds=8.0, protocol="explain")
    machine.metrics.count_feedback("accepted", 4)
    rounds(machine, agent, 10)
    rounds(machine, agent, 10)

    busy, idle = machine.hour()

    counted = busy.counters[OF_VERSION]
    assert counted.requests == 75
    assert counted.errors == 5
    assert counted.failures == 2
    assert busy.labels == 4
    median = counted.quantile(0.5)
    slowest = counted.quantile(0.99)
    assert 0 < median <= 0.005
    assert 0.1 < slowest <= 0.25
    assert busy.at == machine.wall + 10
    assert busy.seconds == 10
    assert idle.seconds == 10
    assert idle.counters == {}
    assert idle.labels == 0


def test_counts_continue_after_a_restart(machine):
    agent = machine.agent()
    machine.answer(30)
    rounds(machine, agent, 10)
    (machine.folder / METRICS).unlink()
    rounds(machine, agent, 60)
    machine.start_server()
    machine.answer(3)
    rounds(machine, agent, 10)

    assert [line.at - machine.wall for line in machine.hour()] == [10, 80]
    assert [line.counters[OF_VERSION].requests for line in machine.hour()] == [30, 3]


def test_new_agent_skips_truncated_line(machine):
    agent = machine.agent()
    rounds(machine, agent, 20)
    file = machine.folder / history.HISTORY / "hour.jsonl"
    file.write_bytes(file.read_bytes() + b'\n{"at": 17')
    agent = machine.agent()
    machine.answer(1)
    rounds(machine, agent, 20)

    assert [bool(line.counters) for line in machine.hour()] == [False, False, True, False]


def test_history_files_are_bounded(machine, monkeypatch):
    monkeypatch.setattr(history, "HISTORY_INTERVALS", {"hour": (10.0, 6), "day": (60.0, 2)})
    agent = machine.agent()
    most = 0
    for _ in range(40):
        machine.answer(1)
        rounds(machine, agent, 10)
        most = max(
            most, (machine.folder / history.HISTORY / "hour.jsonl").read_bytes().count(b'{"at')
        )

    assert most == 12
    assert len(machine.hour()) == 6
    day = parse_server_history(read_history(machine.folder, "day"))
    assert [line.counters[OF_VERSION].requests for line in day] == [6, 6]


def test_full_disk_is_logged(machine, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    agent = machine.agent()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        rounds(machine, agent, 40)
    rounds(machine, agent, 10)

    # The log repeats a message once a minute.
    messages = {record.getMessage() for record in caplog.records}
    assert messages == {"the server's history cannot be written: No space left on device"}
    assert len(machine.hour()) == 1


def test_newer_lines_win_after_clock_was_set_back():
    lines = [
        {"at": at, "seconds": 10, "requests": [], "durations": [], "rows": {}, "labels": n}
        for n, at in enumerate((10, 20, 30, 15, 25))
    ]
    entries = parse_server_history(b"\n".join(map(orjson.dumps, lines)))
    assert [(entry.at, entry.labels) for entry in entries] == [(10, 0), (15, 3), (25, 4)]


EMPTY = b'"requests": [], "durations": [], "rows": {}, "labels": 0}'


@pytest.mark.parametrize(
    "page",
    [
        b"<html>",
        b"[]",
        b'{"at": 1}',
        b'{"at": null, "seconds": 1, "requests": 3}',
        b'{"at": 1e20, "seconds": 10, ' + EMPTY,
        b'{"at": 1.7e9, "seconds": 0, ' + EMPTY,
    ],
)
def test_invalid_history_page_is_refused(page):
    with pytest.raises(ValueError, match=r"line|interval"):
        parse_server_history(page)
