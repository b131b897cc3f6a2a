"""Windows that a user requests: the choice of the monitor and window, the request, and
the stored result.
"""

import os
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import AGENT, write_state
from mlflow_deploy_plugin.core.statedir.models import AgentState
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors import manual_runs
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator
from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor, wait_until_shipped
from mlflow_deploy_plugin.watch.monitors.schedule import overviews
from mlflow_deploy_plugin.watch.monitors.window_runner import WindowRunner
from tests.support.deployments import empty_home
from tests.support.guides import page_reader
from tests.support.monitors import HOUR, NOON
from tests.support.refusals import mentions, refused


def deployments(world):
    return Deployments(world.store, world.settings, world.said.append)


def left_by_a_server(world, **fields):
    """Write the state of `onnxserve serve` on this machine,
    which is not in the store.
    """
    folder = world.settings.home_path / "serve" / "flights-8080"
    folder.mkdir(parents=True)
    document = {
        "name": "flights",
        "variants": {"flights": {"model": "models:/flight-delay/1"}},
        **fields,
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(document))


def captured_rows(world):
    """Write a segment of the server on this machine, which has no agent."""
    segment = world.settings.state_dir("flights") / "spool" / "a1.seg"
    segment.parent.mkdir(parents=True)
    segment.write_bytes(b"x" * 10)


def monitor_of(world, name=None):
    return find_monitor(deployments(world), "flights", name)


def run(world, monitor=None, window=None):
    target = monitor_of(world, monitor)
    return manual_runs.run_window(deployments(world), target, window, world.answer)[0]


def test_latest_window_with_rows_is_judged(world):
    world.endpoint(hourly={"min_rows": 60})
    world.rows(NOON - 3 * HOUR, NOON)
    world.now = NOON + HOUR / 2

    written = run(world)

    assert written.monitor == "hourly"
    assert written.start == NOON - 3 * HOUR
    assert written.state == "judged"
    assert world.asked[-1].spec.min_rows == 60


def test_service_level_refuses_columns_and_spark(world):
    world.endpoint(level={"kind": "service_level", "require": "error_rate<=1%"})
    monitor = monitor_of(world, "level")

    with refused(InvalidConfig, "--exclude", "service_level"):
        monitor.with_bounds(exclude=("x",))
    with refused(InvalidConfig, "--engine spark", "drift", "service_level"):
        manual_runs.run_window(deployments(world), monitor, None, world.answer, "spark")


@pytest.mark.parametrize(
    ("begun", "kept"),
    [
        ({"state": "judged", "verdict": "drift", "run_id": "earlier"}, ("judged", "earlier")),
        ({"attempts": 1}, ("pending", "")),
    ],
    ids=["judged", "retried"],
)
def test_manual_run_adds_a_revision(world, begun, kept):
    world.due()
    window = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update(replace(window, **begun))

    run(world)

    of_schedule, by_hand = world.monitors.windows("flights", "hourly")
    assert (of_schedule.state, of_schedule.run_id) == kept
    assert (by_hand.revision, by_hand.by_hand, by_hand.log_rows) == (2, True, 3)
    assert (by_hand.verdict, by_hand.run_id) == ("no drift", "run-1")


def test_unstored_endpoint_uses_its_server_spec(world):
    left_by_a_server(
        world, capture={"mask": ["carrier"]}, monitors={"hourly": {"every": "1h", "min_rows": 7}}
    )
    world.rows(NOON, NOON + HOUR)
    world.now = NOON + 2 * HOUR
    monitor = monitor_of(world)

    run(world)
    list(manual_runs.backfill(deployments(world), monitor, NOON, NOON + HOUR, world.answer))

    assert [
        (request.window.start, request.monitor, request.spec.min_rows, request.capture.mask)
        for request in world.asked
    ] == [(start, "hourly", 7, ("carrier",)) for start in (NOON + HOUR, NOON)]


def test_rows_without_endpoint_have_default_monitor(world):
    world.rows(NOON - 24 * HOUR)

    written = run(world, "nightly")

    assert written.monitor == "nightly"
    assert written.end - written.start == timedelta(days=1)


def test_endpoint_without_monitors_has_a_default(world):
    world.store.add_endpoint("onnxserve", new_endpoint("flights", "m", {"server.port": 8080}))

    assert monitor_of(world).name == "drift"
    with refused(NotFound, "'flights'", "'drfit'", "onnxserve monitor add"):
        monitor_of(world, "drfit")


def test_temporary_bounds_are_not_stored(world):
    world.endpoint(hourly={"consecutive": 2})
    world.rows(NOON)
    world.now = NOON + 2 * HOUR
    world.judge = lambda asked: "drift"
    monitor = monitor_of(world)

    shown, _ = manual_runs.run_window(
        deployments(world), monitor.with_bounds(min_rows=9), None, world.answer
    )

    (asked,) = world.asked
    assert (asked.spec.min_rows, asked.tried) == (9, "min_rows=9")
    assert mentions(asked.notes[0], "min_rows=9", "not a verdict of the monitor")
    assert (shown.verdict, shown.run_id, shown.rows) == ("drift", "run-1", 3)
    assert world.monitors.windows() == []


@pytest.mark.parametrize(
    "window",
    [Window(NOON, NOON + HOUR), Window(NOON + HOUR / 4, NOON + HOUR * 5 / 4)],
    ids=["the schedule's", "one across it"],
)
def test_late_rows_add_no_manual_revision(world, window):
    world.endpoint()
    world.rows(NOON, NOON + HOUR / 3)
    world.now = NOON + 2 * HOUR
    judged = run(world, window=window)
    runner = WindowRunner(deployments(world), Evaluator(world.answer), world.said.append)
    world.monitors.update_state("flights", "hourly", made_up_to=NOON + 2 * HOUR)

    world.rows(NOON + HOUR / 3)
    world.now += HOUR

    assert runner.add_late_revisions("flights", "hourly") == []
    assert world.monitors.windows() == [judged]


def test_schedule_ignores_interrupted_manual_window(world):
    world.endpoint()
    world.rows(NOON, NOON + HOUR / 4, NOON + HOUR)
    odd = world.monitors.add("flights", "hourly", NOON + HOUR / 4, NOON + HOUR / 2, by_hand=True)
    world.monitors.update(replace(odd, state="running"))
    world.now = NOON + 2 * HOUR + timedelta(minutes=30)

    world.start()
    world.wait_for(2)
    world.end()

    assert [request.window.start for request in world.asked] == [NOON, NOON + HOUR]
    (overview,) = overviews(world.store)
    assert (overview.status, overview.open) == ("waiting", None)
    taken = run(world, window=Window(odd.start, odd.end))
    assert (taken.id, taken.state) == (odd.id, "judged")


def test_unshipped_rows_are_noted(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + 2 * HOUR
    captured_rows(world)

    written = run(world)

    note = "some captured rows are not in the inference log yet and are not judged"
    assert world.asked[-1].result("no drift", "").notes == (note,)
    assert note in written.reason


def test_unusable_log_is_refused_before_waiting(world, monkeypatch):
    world.endpoint()
    settings = world.settings.model_copy(update={"log_uri": "gs://rows"})
    monitor = monitor_of(world)
    monkeypatch.setattr(manual_runs, "wait_until_shipped", lambda *_: pytest.fail("it waits"))

    with refused(InvalidConfig, "ONNXSERVE_LOG_URI", "gs://rows"):
        manual_runs.run_window(
            replace(deployments(world), settings=settings), monitor, None, world.answer
        )


def test_missing_endpoint_monitor_or_rows(world):
    world.endpoint(hourly={}, daily={"every": "1d"})
    world.rows(NOON)
    world.now = NOON + 2 * HOUR

    with refused(NotFound, "'flihgts'", "'flights'"):
        find_monitor(deployments(world), "flihgts", None)
    with refused(NotFound, "'weekly'", "daily, hourly"):
        run(world, "weekly")
    with refused(InvalidConfig, "--monitor daily | hourly"):
        run(world)
    with refused(NotFound, "no captured rows", "2026-11-20T12:00"):
        run(world, "hourly", Window(NOON.replace(year=2014), NOON.replace(year=2014) + HOUR))


def backfill(world, again=False):
    """Backfill the hour from NOON, and return the rows of its window, and if it was
    judged now.
    """
    monitor = monitor_of(world)
    period = NOON, NOON + HOUR
    windows = manual_runs.backfill(deployments(world), monitor, *period, world.answer, again)
    return [(each.window.rows, each.is_judged_now) for each in windows]


def test_backfill_repeats_windows_with_new_rows(world):
    world.endpoint()

    without_rows = [backfill(world), backfill(world)]
    world.rows(NOON)
    with_rows = [backfill(world), backfill(world), backfill(world, again=True)]

    assert without_rows == [[(0, True)], [(0, False)]]
    assert with_rows == [[(3, True)], [(3, False)], [(3, True)]]


@pytest.mark.parametrize(("server", "command"), [("here", "run"), ("elsewhere", "backfill")])
def test_manual_judgement_waits_for_captured_rows(world, server, command):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + 2 * HOUR
    folder = world.settings.state_dir("flights")
    segment = folder / "spool" / "a1.seg"
    if server == "here":
        captured_rows(world)
        write_state(folder / AGENT, AgentState(pid=os.getpid()))
        (folder / "progress.json").write_text('{"agent": "one"}')
    world.watermark(NOON, written_at=world.now)

    def ship(line):
        """Write the captured rows as soon as the command says that it waits."""
        world.rows(NOON, rows=5)
        segment.unlink(missing_ok=True)
        if server == "elsewhere":
            world.watermark(world.now)

    waiting = replace(deployments(world), progress=ship)
    monitor = find_monitor(waiting, "flights", None)
    period = NOON, NOON + HOUR
    if command == "run":
        manual_runs.run_window(waiting, monitor, Window(*period), world.answer)
    else:
        list(manual_runs.backfill(waiting, monitor, *period, world.answer))

    assert world.monitors.windows()[0].rows == 8


def test_too_large_backfill_is_refused(world):
    world.endpoint(seconds={"every": "1s"})
    monitor = monitor_of(world)

    with refused(InvalidConfig, "2,592,000 windows of 1s", "10,000", "--to 2026-11-20T14:46:40"):
        next(
            manual_runs.backfill(
                deployments(world), monitor, NOON, NOON + 24 * 30 * HOUR, world.answer
            )
        )
    assert world.monitors.windows() == []


def test_failed_manual_run_is_not_retried(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + 2 * HOUR

    def judge(question):
        raise InvalidConfig("the reference is not there")

    world.judge = judge
    with pytest.raises(Exception, match="not there"):
        run(world)

    (window,) = world.monitors.windows("flights", states=("failed",))
    assert window.attempts == 1


def test_run_due_stops_at_a_failed_window(world, monkeypatch):
    def due():
        world.said.clear()
        monitor = monitor_of(world)
        taken = manual_runs.run_due(deployments(world), monitor, world.said.append)
        return [(window.state, window.attempts) for window in taken]

    def fails(asked):
        raise OnnxserveError("the disk is full")

    monkeypatch.setattr(manual_runs, "judge_and_log", world.answer)
    world.now = NOON
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + 1.5 * HOUR
    world.judge = fails

    assert due() == [("pending", 1)]
    # The next attempt is not due yet, but a Job may start its next pod now.
    assert due() == [("pending", 1)]
    assert mentions(world.said[0], "retried", "the disk is full")
    world.judge = lambda asked: "no drift"
    world.now += HOUR / 60
    assert due() == [("judged", 1)]
    assert due() == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_page_of_ten_commands(tmp_path, new_database):
    with empty_home(tmp_path):
        reader = page_reader(tmp_path, new_database(tmp_path))
        _, served, watched, alerted = reader.run_page("ten-commands.md")
        files = reader.run("onnxserve drift run cancer --rows shifted.csv --reference training.csv")
        reader.run("mlflow deployments delete -t onnxserve --name cancer")

    assert mentions(served, "cancer version 1 has the alias @champion")
    assert re.search(r"^cancer drift \S+: no drift\n.*, 228 rows$", watched, re.MULTILINE)
    assert re.search(r"^cancer, cancer version 1, \S+: drift$", alerted, re.MULTILINE), alerted
    found = re.search(r"mean radius, .*: mean 14\.23 → ([\d.]+), higher", alerted)
    # Rows of both files are in one window if the commands follow at once.
    assert found
    assert 15.5 < float(found[1]) < 18.5
    assert mentions(files, "228 rows", "mean radius: mean 14.23 → 18.17, higher")


def test_run_due_needs_a_stored_endpoint(world):
    left_by_a_server(world)
    monitor = monitor_of(world)

    with refused(NotFound, "'flights'", "the store"):
        next(manual_runs.run_due(deployments(world), monitor, world.said.append))


NO_PROCESS = 2**22 + 1


@pytest.fixture
def segment(tmp_path):
    path = tmp_path / "spool" / "a1.seg"
    path.parent.mkdir()
    path.write_bytes(b"x" * 10)
    return path


def agent(state_dir, pid):
    write_state(state_dir / AGENT, AgentState(pid=pid))


def ship(segment):
    segment.write_bytes(b"x" * 99)  # New rows are captured.
    segment.with_suffix(".shipped").write_text("10")


@pytest.mark.parametrize("until", [ship, Path.unlink], ids=["shipped", "removed"])
def test_wait_ends_when_initial_rows_are_shipped(tmp_path, segment, until):
    agent(tmp_path, os.getpid())

    assert wait_until_shipped(tmp_path, 5, pause=lambda _: until(segment))


def test_deleted_segments_need_no_wait(tmp_path):
    assert wait_until_shipped(tmp_path, 5)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "deleted.seg").symlink_to(tmp_path / "gone")
    assert wait_until_shipped(tmp_path, 5)


def test_wait_ends_at_timeout_or_without_agent(tmp_path, segment):
    seconds = iter(range(100))
    agent(tmp_path, os.getpid())
    assert not wait_until_shipped(
        tmp_path, 5, clock=lambda: float(next(seconds)), pause=lambda _: None
    )
    agent(tmp_path, NO_PROCESS)
    assert not wait_until_shipped(
        tmp_path, 1e9, pause=lambda _: pytest.fail("there is no agent to wait for")
    )
