"""Tests that answered requests reach the log, even if processes are killed or a disk or
service fails.

Each row of an answered request is finally in the log, once for its reader, or is
counted as dropped. A failure of the log never makes a request fail. The name of the
endpoint is unique, because another server of this machine may get the port of a killed
server and answer with another log.
"""

import os
import random
import resource
import signal
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pytest
import requests

from mlflow_deploy_plugin.core.statedir.files import SPOOL, read_workers
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.serve.spool.frames import segments
from tests.support.models import write_model
from tests.support.waiting import wait_until

PATIENCE = 90.0
ENDPOINT = f"adder-{uuid.uuid4().hex}"
EVENT_TIME = "2026-06-01T12:30:00Z"
COLUMN = {"name": "x", "type": "float", "required": True}


@dataclass
class Load:
    """Clients that send requests continuously, and the results of these requests.

    Attributes:
        answered: the prediction ids of responses with 200. `refused`: other statuses.
            `broken`: connections that ended without a response, or with a response of a
            server that does not have the endpoint.
    """

    url: str
    answered: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    broken: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def ask(self, seed):
        number = seed
        while not self.stopping.wait(0.02):
            number += 1000
            try:
                answer = requests.post(
                    f"{self.url}/endpoints/{ENDPOINT}/invocations",
                    json={"inputs": [[float(number)]]},
                    headers={"X-Event-Time": EVENT_TIME},
                    timeout=30,
                )
            except requests.RequestException:
                self.broken += 1
                continue
            if answer.status_code == 200:
                self.answered.append(answer.headers["X-Prediction-Id"])
            elif answer.status_code == 404:
                self.broken += 1
            else:
                self.refused.append(answer.status_code)

    def wait_for(self, more):
        """Wait until this number of additional responses has arrived."""
        goal = len(self.answered) + more
        wait_until(lambda: len(self.answered) >= goal, PATIENCE, f"{more} more answers")


@contextmanager
def asking(url, clients=2):
    load = Load(url)
    threads = [threading.Thread(target=load.ask, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class Log:
    """The log at `uri`, as a reader sees it."""

    uri: str

    def predictions(self):
        log = open_log(self.uri)
        window = parse_window("2026-06-01/1d")
        tables = list(log.batches(ENDPOINT, window, ["_prediction_id"]))
        assert log.unreadable == {}
        return list(
            chain.from_iterable(
                pc.cast(table.column("_prediction_id"), "string").to_pylist() for table in tables
            )
        )

    def has_all(self, answered):
        """Check that each prediction id is in the log exactly once."""
        logged_ids = self.predictions()
        assert len(logged_ids) == len(set(logged_ids))
        assert set(answered) <= set(logged_ids), (
            f"{len(set(answered) - set(logged_ids))} of {len(answered)} are missing"
        )

    def told(self):
        (mark,) = read_watermarks(open_log(self.uri).location)
        return mark


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    return Log(str(tmp_path / "log"))


@pytest.fixture
def start(serve, tmp_path):
    model = write_model(tmp_path / "model", signature=[COLUMN])
    return lambda: serve(str(model), "--name", ENDPOINT, "-w", "2").wait_ready()


def agent_of(served):
    def found():
        with suppress(psutil.NoSuchProcess):  # A process may have just ended.
            return [process for process in served.members() if process.name() == "agent"]
        return []

    return psutil.Process(wait_until(found, PATIENCE, "an agent")[0].pid)


def worker_of(served):
    alive = wait_until(
        lambda: [
            worker.pid for worker in read_workers(served.state_dir) if psutil.pid_exists(worker.pid)
        ],
        PATIENCE,
        "a worker",
    )
    return psutil.Process(random.choice(alive))


def gunicorn_of(served):
    """Return the parent of the workers. After it is killed, its orphaned workers are
    children of the supervisor.
    """

    def found():
        children = psutil.Process(served.process.pid).children()
        with suppress(psutil.NoSuchProcess):  # A process may have just ended.
            return [child for child in children if child.name() == "gunicorn" and child.children()]
        return []

    return psutil.Process(wait_until(found, PATIENCE, "gunicorn")[0].pid)


def kill_all_of(served):
    """Kill all processes at once, so that no process notices the end of the supervisor
    and shuts down orderly.
    """
    for pid in sorted(member.pid for member in served.members()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not served.members(), PATIENCE, "the end of all")


@pytest.mark.long
def test_killed_processes_and_log_outage_lose_no_rows(start, log, tmp_path):
    served = start()
    with asking(served.url) as load:
        load.wait_for(15)
        agent_of(served).kill()
        load.wait_for(15)
        assert load.refused == []
        assert load.broken == 0
        worker_of(served).kill()
        load.wait_for(15)
        gunicorn_of(served).kill()
        load.wait_for(15)
        broken = load.broken  # These requests were in progress in the killed workers.
        wait_until(lambda: Path(log.uri).is_dir(), PATIENCE, "a first file")
        Path(log.uri).rename(tmp_path / "kept")
        Path(log.uri).write_text("a file where the folder should be")
        agent = agent_of(served)
        load.wait_for(15)
        wait_until(lambda: "cannot be written" in served.log.read_text(), PATIENCE, "the error")
        Path(log.uri).unlink()
        (tmp_path / "kept").rename(log.uri)
        load.wait_for(15)
        assert load.refused == []
        assert load.broken == broken
        assert agent.pid == agent_of(served).pid
    assert served.end() == 0, served.log.read_text()
    log.has_all(load.answered)
    mark = log.told()
    assert mark.ended
    assert mark.shipped_rows[ENDPOINT] == len(log.predictions()) >= mark.captured_rows[ENDPOINT]
    assert mark.answered_rows[ENDPOINT] >= len(load.answered)
    assert mark.dropped_rows == {ENDPOINT: 0}
    assert segments(served.state_dir / SPOOL) == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_killed_server_loses_no_answered_rows(start, log, seed):
    draw = random.Random(seed)
    answered = []
    for _ in range(2):
        served = start()
        with asking(served.url, 3) as load:
            load.wait_for(draw.randint(20, 200))
            time.sleep(draw.uniform(0, 4))  # The kill may hit any moment of the agent's rounds.
            kill_all_of(served)
        assert load.refused == []
        answered += load.answered
    served = start()
    assert served.predict(1.0, X_Event_Time=EVENT_TIME).status_code == 200
    assert served.end() == 0, served.log.read_text()
    log.has_all(answered)
    mark = log.told()
    assert mark.ended
    assert mark.shipped_rows[ENDPOINT] == len(log.predictions())
    assert mark.answered_rows[ENDPOINT] >= len(answered) + 1


@pytest.mark.long
def test_full_disk_counts_dropped_rows(start, log):
    served = start()
    limits = {
        worker.pid: resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
        for worker in read_workers(served.state_dir)
    }
    with asking(served.url) as load:
        load.wait_for(50)
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        load.wait_for(50)
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
        load.wait_for(50)
    assert load.refused == []
    assert load.broken == 0
    assert served.end() == 0, served.log.read_text()
    mark = log.told()
    logged_ids = log.predictions()
    assert (
        len(logged_ids)
        == len(set(logged_ids))
        == mark.shipped_rows[ENDPOINT]
        == mark.captured_rows[ENDPOINT]
    )
    assert mark.dropped_rows[ENDPOINT] >= 40
    assert (
        len(load.answered)
        == mark.answered_rows[ENDPOINT]
        == len(logged_ids) + mark.dropped_rows[ENDPOINT]
    )
