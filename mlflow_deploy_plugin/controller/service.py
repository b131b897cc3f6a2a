"""The controller process: rollouts, monitors, alerts and retrainings put together, and run until it is ended."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mlflow_deploy_plugin.controller.leadership import LEASE_SECONDS, controller_name, lead_store, process_name, repeat
from mlflow_deploy_plugin.controller.monitors.maintenance import maintain_logs
from mlflow_deploy_plugin.controller.monitors.scheduler import MonitorScheduler
from mlflow_deploy_plugin.controller.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.runner import RetrainingRunner, start_rollouts_at
from mlflow_deploy_plugin.controller.rollouts.controller import RolloutActions, RolloutController, run_rollouts
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.monitoring import send_due
from mlflow_deploy_plugin.monitoring.alerts.send import GROUPING_DELAY

_REPEAT_SECONDS = 5.0
_AWAITED_SECONDS = 0.5  # the same for a retraining that somebody waits for


def run_controller(
    deployments: Deployments, ended: threading.Event, *, lease_seconds: float, judge_at_once: int, judge_seconds: float
) -> None:
    """Run everything until `ended` is set. Controllers without a lease wait to take over.

    `judge_at_once` windows are judged at the same time; a judgement that takes longer than `judge_seconds` is ended.
    """
    store, say = deployments.store, deployments.progress
    context = RetrainingContext(deployments, controller_name())
    scheduler = MonitorScheduler(
        deployments, process_name(), at_once=judge_at_once, judging_seconds=judge_seconds, lease_seconds=lease_seconds
    )
    store_tasks = (
        scheduler.run,
        repeat(RetrainingRunner(context).advance, _REPEAT_SECONDS),
        repeat(lambda: send_due(store, deployments.settings, GROUPING_DELAY), _REPEAT_SECONDS),
        partial(maintain_logs, deployments),
    )

    def rollouts_at(place: str, servers: str) -> RolloutController:
        actions = RolloutActions(deployments, controller_name(), say)
        waiting = repeat(partial(start_rollouts_at, context, place), _REPEAT_SECONDS)
        return RolloutController(store, actions, process_name(), place, servers, lease_seconds, background=(waiting,))

    with ThreadPoolExecutor(1, "store") as pool:
        leading = pool.submit(lead_store, store, store_tasks, process_name(), lease_seconds, say, ended)
        leading.add_done_callback(lambda _: ended.set())
        try:
            run_rollouts(deployments, rollouts_at, ended)
        finally:
            ended.set()
        leading.result()


def run_retrainings(deployments: Deployments, ended: threading.Event) -> None:
    """Run the retrainings of the store until `ended` is set, while no controller does."""
    task = repeat(RetrainingRunner(RetrainingContext(deployments, controller_name())).advance, _AWAITED_SECONDS)
    lead_store(deployments.store, [task], process_name(), LEASE_SECONDS, lambda line: None, ended)
