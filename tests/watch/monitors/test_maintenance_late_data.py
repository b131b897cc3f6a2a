"""Labels that arrive after their window was judged, in a real store and log."""

import uuid
from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator
from mlflow_deploy_plugin.watch.monitors.maintenance import is_material
from mlflow_deploy_plugin.watch.monitors.window_runner import Idle, WindowRunner
from tests.support.monitors import HOUR, NOON
from tests.support.refusals import mentions

ROWS = 40
HITS = {"kind": "performance", "require": "accuracy>=0.5", "min_rows": 10, "labels_within": "2h"}
DUE = NOON + 3 * HOUR + timedelta(minutes=6)


class Turned:
    """A window of 40 rows that was judged by hand. The tests start the search for late
    data.
    """

    def __init__(self, world, **monitor):
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

    def label(self, rows, label="late"):
        now = self.world.now
        labels = [Label(str(row), None, None, label, int(now.timestamp() * 1e6)) for row in rows]
        self.world.writer.label(*labels, day=f"{now:%F}", name=uuid.uuid4().hex)

    def judge(self):
        """Return all stored and due windows."""
        lease = self.world.store.acquire_lease("the test's", "the test", 60)
        with LeaseKeeper(self.world.store, lease) as keeper:
            while not isinstance(self.runner.run_next("flights", "hits", keeper), Idle):
                pass

    def look_again(self):
        """Return the window's newest revision an hour later, after all late data was
        judged.
        """
        self.world.now += HOUR
        self.runner.add_late_revisions("flights", "hits")
        self.judge()
        return self.window.revision

    @property
    def window(self):
        return [
            candidate for candidate in self.world.monitors.windows() if candidate.start == NOON
        ][-1]


@pytest.fixture
def turned(world):
    return Turned(world)


def test_late_labels_start_revisions(
    turned,
):
    turned.label(range(9))
    turned.judge()
    assert turned.window.revision == 1
    assert turned.window.figures["labelled_rows"] == 9

    for rows, revision in (([8], 1), ([9], 2), (range(10, ROWS), 3), ([], 3)):
        turned.label(rows)
        assert turned.look_again() == revision
    assert turned.window.figures["labelled_rows"] == ROWS
    assert any(
        mentions(line, "flights", "monitor hits", "labels", "2026-11-20T12:00")
        for line in turned.world.said
    )


@pytest.mark.parametrize(
    ("fields", "known", "labels", "is_enough"),
    [
        ({}, 10_000, 10_999, False),
        ({}, 10_000, 11_000, True),
        ({"labels": "reported"}, 0, 0, False),
        ({"labels": "reported"}, 0, 1, True),
    ],
)
def test_share_of_new_labels_is_material(fields, known, labels, is_enough):
    """A window is looked at up to a number of rows, of which a twentieth is enough."""
    hour = (NOON, NOON + HOUR)
    window = MonitorWindow(0, "flights", "hits", *hour, 1, False, "judged", NOON, NOON)
    figures = {"labelled_rows": float(known), "labelled_share": 0.5}
    judged = replace(window, rows=1_000_000, figures=figures)

    assert is_material(labels, judged, MonitorSpec(**HITS | fields)) is is_enough


def test_files_without_new_labels_are_counted_once(turned, monkeypatch):
    turned.label(range(20))
    turned.judge()
    # Later labels replace earlier labels, so their number does not change.
    turned.label(range(20), "another")
    digest = turned.window.log_digest

    assert turned.look_again() == 1

    assert turned.window.log_digest != digest
    monkeypatch.setattr("mlflow_deploy_plugin.serve.inference_log.labels.EndpointLabels.join", None)
    assert turned.look_again() == 1


def test_late_labels_are_ignored_after_a_week(turned):
    turned.judge()
    turned.world.now = NOON + HOUR + timedelta(hours=2, days=7, minutes=-90)
    turned.label(range(10))
    assert turned.look_again() == 2
    turned.world.now += HOUR
    turned.label(range(10, ROWS))
    assert turned.look_again() == 2


def test_text_labels_of_regressors_are_ignored(world):
    turned = Turned(world, require="mae<=3")
    turned.judge()
    turned.label(range(20), "unknown")
    assert turned.look_again() == 1

    turned.label(range(20), 7.5)

    assert turned.look_again() == 2
    assert turned.window.figures["labelled_rows"] == 20
