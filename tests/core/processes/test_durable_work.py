"""Attempts at work: one at a time per key, several in parallel, with pauses, and
isolated from other failures.
"""

import threading
from collections.abc import Hashable

from mlflow_deploy_plugin.core.processes.durable_work import MAX_BACKOFF, WorkRunner, backoff
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

SECONDS = 30.0


def test_pauses_grow_to_ten_minutes():
    pauses = [backoff(attempts).total_seconds() for attempts in (1, 2, 3, 4, 1000)]

    assert pauses == [15, 30, 60, 120, MAX_BACKOFF.total_seconds()]


def test_a_piece_of_work_has_one_attempt_at_a_time_and_waits_for_its_pause():
    now = [0.0]
    go_on = threading.Event()
    attempts = []
    work = WorkRunner("test", 2, 30, monotonic=lambda: now[0])

    def attempt():
        attempts.append(threading.current_thread())
        go_on.wait(SECONDS)
        return 10.0

    work.start("one", attempt)
    wait_until(lambda: attempts, SECONDS, "it runs")
    work.start("one", attempt)
    assert not work.is_free("one")
    go_on.set()
    wait_until(work.finished.is_set, SECONDS, "it has ended")
    assert len(attempts) == 1

    work.start("one", attempt)
    assert len(attempts) == 1
    now[0] = 10.0
    assert work.is_free("one")
    work.start("one", attempt)
    wait_until(lambda: len(attempts) == 2, SECONDS, "it runs again")


def test_only_so_many_run_at_once_and_the_longest_waiting_is_next():
    begun: list[str] = []
    gates = {name: threading.Event() for name in "abc"}
    work = WorkRunner("test", 1, 30)

    def attempt(name):
        begun.append(name)
        gates[name].wait(SECONDS)
        return 0.0

    for name in gates:
        work.start(name, lambda name=name: attempt(name))  # type: ignore[misc]
    wait_until(lambda: begun == ["a"], SECONDS, "the first runs alone")
    gates["a"].set()
    wait_until(lambda: begun == ["a", "b"], SECONDS, "then the second")

    work.stop(wait=False)
    gates["b"].set()
    work.stop(wait=True)
    assert begun == ["a", "b"]


def test_a_failure_that_cannot_be_handled_stops_no_other_work():
    done = threading.Event()

    def handle(_key, error, _count):
        raise error

    def attempt():
        raise RuntimeError("a bug")

    def sound():
        done.set()
        return 0.0

    work = WorkRunner("test", 1, 0, handle)
    work.start("one", attempt)
    work.start("two", sound)
    assert done.wait(SECONDS)
    wait_until(lambda: work.is_free("one"), SECONDS, "it may be tried again")


def test_an_unexpected_exception_pauses_the_work_and_is_counted_until_it_succeeds(caplog):
    now = [0.0]
    defects = list[tuple[Hashable, str, int]]()
    work = WorkRunner(
        "test",
        1,
        30,
        lambda key, error, count: defects.append((key, str(error), count)),
        lambda: now[0],
    )

    fails = iter([True, True, False, True])

    def attempt():
        if next(fails):
            raise RuntimeError("a bug")
        return 30.0

    for _ in range(4):
        work.start("one", attempt)
        wait_until(work.finished.is_set, SECONDS, "it has ended")
        work.finished.clear()
        assert not work.is_free("one")
        now[0] += 30
    assert defects == [("one", "a bug", 1), ("one", "a bug", 2), ("one", "a bug", 1)]
    assert mentions(caplog.text, "test one", "30 s")
