"""Tests of the jobs of actions, including jobs that do not end."""

import os

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.statedir.files import is_alive, write_state
from mlflow_deploy_plugin.ui import jobs
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until

ID = "a" * 16


def test_hanging_job_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(jobs, "_MODULE", "hangs")
    started = Jobs(tmp_path, longest=0.0).start(press({}), {})
    ended = wait_until(lambda: found(tmp_path, started.id, "failed"), 60, "it was stopped")
    assert mentions(ended.message, "0 s", "stopped")
    assert not is_alive(started.pid)


def test_job_of_a_dead_server_times_out(tmp_path):
    write_state(tmp_path / f"{ID}.json", press({}, id=ID, pid=os.getpid(), started_at=0.0))
    assert mentions(found(tmp_path, ID, "failed").message, "timeout")


def test_repeated_button_starts_one_job(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_MODULE", "tests.support.waiting")
    write_state(tmp_path / f"{ID}.json", press({"endpoint": "x"}, id=ID))

    assert Jobs(tmp_path).start(press({"endpoint": "x"}), {}).id == ID
    other = Jobs(tmp_path).start(press({"endpoint": "y"}), {}).id
    assert other != ID
    wait_until(lambda: found(tmp_path, other, "failed"), 60, "the other one has ended")


def test_jobs_are_limited_per_person(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_MODULE", "tests.support.waiting")
    for place in range(4):
        job = press({"version": str(place)}, id=f"{place:016}", actor="mallory")
        write_state(tmp_path / f"{job.id}.json", job)

    with refused(TooManyRequests, "4 of your actions"):
        Jobs(tmp_path).start(press({"version": "4"}, actor="mallory"), {})
    started = Jobs(tmp_path).start(press({"endpoint": "y"}), {}).id
    wait_until(lambda: found(tmp_path, started, "failed"), 60, "that of another person has run")


def test_job_has_no_database_uris(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_MODULE", "tests.support.environment")
    for variable in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_WORKSPACE_STORE_URI"):
        monkeypatch.setenv(variable, "postgresql://user:password@db")
    id = Jobs(tmp_path).start(press({}), {"MLFLOW_WORKSPACE": "team-a"}).id
    wait_until(lambda: found(tmp_path, id, "failed"), 60, "it has ended")

    log = (tmp_path / f"{id}.log").read_text()
    assert "MLFLOW_WORKSPACE=team-a" in log
    assert "password" not in log


def press(arguments, actor="eva", **fields):
    return Job(description="roll x back", actor=actor, arguments=arguments, **fields)


def found(folder, id, state):
    job = Jobs(folder).get(id)
    if job is not None and job.state == state:
        return job
    return None
