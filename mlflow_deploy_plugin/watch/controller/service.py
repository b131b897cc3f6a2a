"""The controller process, which runs rollouts, monitors, alerts and retrainings until
it is stopped.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mlflow_deploy_plugin.core.registry.approved_files import changed_files
from mlflow_deploy_plugin.core.registry.audit_trail import published_trail
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.approvals import request_is_over
from mlflow_deploy_plugin.promote.rollouts.commands import end_unapproved
from mlflow_deploy_plugin.promote.rollouts.controller import (
    RolloutActions,
    RolloutController,
    run_rollouts,
)
from mlflow_deploy_plugin.promote.rollouts.leadership import (
    LEASE_SECONDS,
    controller_name,
    lead_store,
    process_name,
    repeat,
)
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import announce, announce_changed_files
from mlflow_deploy_plugin.watch.alerts.send import GROUPING_DELAY, send_due
from mlflow_deploy_plugin.watch.monitors.maintenance import maintain_logs
from mlflow_deploy_plugin.watch.monitors.scheduler import MonitorScheduler
from mlflow_deploy_plugin.watch.observed.source_schedule import read_sources
from mlflow_deploy_plugin.watch.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.watch.retraining.runner import RetrainingRunner, start_rollouts_at

_REPEAT_SECONDS = 5.0
_FILES_SECONDS = 900.0
"""The pause between two searches for changed files of versions in gated stages and
aliases.
"""
_AWAITED_SECONDS = 0.5  # the repeat interval for a retraining that a command waits for


def run_controller(
    deployments: Deployments,
    ended: threading.Event,
    *,
    lease_seconds: float,
    judge_at_once: int,
    judge_seconds: float,
) -> None:
    """Run all tasks of the controller until `ended` is set. While another controller
    has a lease, wait for it.

    `judge_at_once` windows are judged at the same time. A judgement is stopped after
    `judge_seconds`.
    """
    store = deployments.store
    say = deployments.progress
    context = RetrainingContext(deployments, controller_name())
    scheduler = MonitorScheduler(
        deployments,
        process_name(),
        at_once=judge_at_once,
        judging_seconds=judge_seconds,
        lease_seconds=lease_seconds,
    )
    is_over = partial(request_is_over, store)
    store_tasks = (
        scheduler.run,
        repeat(RetrainingRunner(context).advance, _REPEAT_SECONDS),
        repeat(
            lambda: send_due(store, deployments.settings, GROUPING_DELAY, is_over),
            _REPEAT_SECONDS,
        ),
        partial(maintain_logs, deployments),
        partial(read_sources, deployments),
        repeat(partial(announce_changes_of_files, store), _FILES_SECONDS),
        repeat(partial(announce_trail_faults, store), _FILES_SECONDS),
    )

    def rollouts_at(location: str, servers: str) -> RolloutController:
        """Return the controller of the rollouts at a location, which also starts
        rollouts of retrained versions and ends those of unapproved versions.
        """
        actions = RolloutActions(deployments, controller_name(), say)
        tasks = (
            repeat(partial(start_rollouts_at, context, location), _REPEAT_SECONDS),
            repeat(
                partial(end_unapproved, deployments, location, controller_name()),
                _REPEAT_SECONDS,
            ),
        )
        return RolloutController(
            store,
            actions,
            process_name(),
            location,
            servers,
            lease_seconds,
            background=tasks,
        )

    with ThreadPoolExecutor(1, "store") as pool:
        leading = pool.submit(
            lead_store,
            store,
            store_tasks,
            process_name(),
            lease_seconds,
            say,
            ended,
        )
        leading.add_done_callback(lambda _: ended.set())
        try:
            run_rollouts(deployments, rollouts_at, ended)
        finally:
            ended.set()
        leading.result()


def announce_changes_of_files(store: Store) -> None:
    """Record an alert for each version in a gated stage or alias whose files have
    changed.

    MLflow's server reads the files, and finds none without the app. An error is logged,
    and the next search follows.
    """
    for changed in changed_files():
        announce_changed_files(store, changed)


def announce_trail_faults(store: Store) -> None:
    """Record an alert per day and fault that MLflow's server reports about the record
    of its audit trail and about the witnesses.
    """
    published = published_trail()
    for fault in published.faults if published else ():
        announce(store, "audit trail", "checkpoint", f"on {store.now():%Y-%m-%d}, {fault}")


def run_retrainings(deployments: Deployments, ended: threading.Event) -> None:
    """Run the retrainings of the store until `ended` is set, unless a controller holds
    the lease.
    """
    task = repeat(
        RetrainingRunner(RetrainingContext(deployments, controller_name())).advance,
        _AWAITED_SECONDS,
    )
    lead_store(
        deployments.store,
        [task],
        process_name(),
        LEASE_SECONDS,
        lambda line: None,
        ended,
    )
