"""Labels that arrive after their window was judged, in a real store and log."""

import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator
from mlflow_deploy_plugin.watch.monitors.maintenance import is_material
from mlflow_deploy_plugin.watch.monitors.window_runner import Idle, WindowRunner
from tests.support.monitors import HOUR, NOON, MonitoredWorld
from tests.support.refusals import mentions

ROWS = 40
HITS = {"kind": "performance", "require": "accuracy>=0.5", "min_rows": 10, "labels_within": "2h"}
DUE = NOON + 3 * HOUR + timedelta(minutes=6)


class Turned:
    """A window of 40 rows that was judged by hand. The tests start the search for late
    data.
    """

    def __init__(self, world: MonitoredWorld, **monitor: Any) -> None:
        self.world = world
        world.endpoint(hits=HITS | monitor)
        times = [NOON + timedelta(seconds=second) for second in range(ROWS)]
        world.writer.write(
            {"_event_time": times, "_prediction_id": [str(row) for row in range(ROWS)]}
        )
        world.now = DUE
        deployments = Deployments(world.store, world.settings, world.said.append)
        self.runner = WindowRunner(
            deployments, Evaluator(world.answer), world.said.append, max_catch_up=1
        )

    def label(self, rows: Iterable[int], label: str | float = "late") -> None:
        now = self.world.now
        labels = [Label(str(row), None, None, label, int(now.timestamp() * 1e6)) for row in rows]
        self.world.writer.label(*labels, day=f"{now:%F}", name=uuid.uuid4().hex)

    def judge(self) -> None:
        """Return all stored and due windows."""
        lease = self.world.store.acquire_lease("the test's", "the test", 60)
        assert lease is not None
        with LeaseKeeper(self.world.store, lease) as keeper:
            while not isinstance(self.runner.run_next("flights", "hits", keeper), Idle):
                pass

    def look_again(self) -> int:
        """Return the window's newest revision an hour later, after all late data was
        judged.
        """
        self.world.now += HOUR
        self.runner.add_late_revisions("flights", "hits")
        self.judge()
        return self.window.revision

    @property
    def window(self) -> MonitorWindow:
        return [
            candidate for candidate in self.world.monitors.windows() if candidate.start == NOON
        ][-1]


@pytest.fixture
def turned(world):
    return Turned(world)


def test_a_window_is_judged_again_with_enough_labels_and_then_with_each_twentieth_of_its_rows(
    turned,
):
    turned.label(range(9))
    turned.judge()
    assert turned.window.revision == 1
    assert turned.window.figures["labelled_rows"] == 9

    for rows, revision in (([8], 1), ([9], 2), ([10], 2), ([11], 3), (range(12, ROWS), 4), ([], 4)):
        turned.label(rows)
        assert turned.look_again() == revision
    assert turned.window.figures["labelled_rows"] == ROWS
    assert any(
        mentions(line, "flights", "monitor hits", "labels", "2026-11-20T12:00")
        for line in turned.world.said
    )


@pytest.mark.parametrize(("labels", "is_enough"), [(10_999, False), (11_000, True)])
def test_of_a_window_of_more_rows_than_are_looked_at_a_twentieth_of_these_is_enough(
    world, labels, is_enough
):
    world.endpoint(hits=HITS)
    wide = world.monitors.add("flights", "hits", NOON, NOON + HOUR)
    judged = replace(
        wide, rows=1_000_000, figures={"labelled_rows": 10_000.0, "labelled_share": 0.5}
    )

    assert is_material(labels, judged, world.spec(hits=HITS).monitors["hits"]) is is_enough


def test_a_single_reported_label_is_enough(world):
    spec = {**HITS, "labels": "reported"}
    world.endpoint(hits=spec)
    added = world.monitors.add("flights", "hits", NOON, NOON + HOUR)
    judged = replace(added, rows=1_000, figures={"labelled_rows": 0.0, "labelled_share": 0.0})

    assert [
        is_material(labels, judged, world.spec(hits=spec).monitors["hits"]) for labels in (0, 1)
    ] == [False, True]


def test_files_that_hold_no_new_labels_are_counted_once(turned, monkeypatch):
    turned.label(range(20))
    turned.judge()
    # Later labels replace earlier labels, so their number does not change.
    turned.label(range(20), "another")
    digest = turned.window.log_digest

    assert turned.look_again() == 1

    assert turned.window.log_digest != digest
    monkeypatch.setattr("mlflow_deploy_plugin.serve.inference_log.labels.EndpointLabels.join", None)
    assert turned.look_again() == 1


def test_labels_are_looked_for_a_week_after_they_should_have_been_in(turned):
    turned.judge()
    turned.world.now = NOON + HOUR + timedelta(hours=2, days=7, minutes=-90)
    turned.label(range(10))
    assert turned.look_again() == 2
    turned.world.now += HOUR

    turned.label(range(10, ROWS))

    assert turned.look_again() == 2


def test_labels_that_are_no_numbers_are_none_of_a_regressor(world):
    turned = Turned(world, require="mae<=3")
    turned.judge()
    turned.label(range(20), "unknown")
    assert turned.look_again() == 1

    turned.label(range(20), 7.5)

    assert turned.look_again() == 2
    assert turned.window.figures["labelled_rows"] == 20
