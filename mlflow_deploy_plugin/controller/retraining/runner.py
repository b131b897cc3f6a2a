"""Every retraining under way, one step further, without waiting for any: a step may take minutes."""

import logging
import threading
import time
from dataclasses import dataclass, field

from mlflow_deploy_plugin.controller.locality import is_local
from mlflow_deploy_plugin.controller.retraining import deploy, training
from mlflow_deploy_plugin.controller.retraining.context import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.deploy import awaits_other_controller
from mlflow_deploy_plugin.controller.retraining.served import ServedModelChanged
from mlflow_deploy_plugin.controller.retraining.trigger import request_scheduled
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotReady, OnnxserveError, RegistryUnavailable, StoreUnavailable
from mlflow_deploy_plugin.store.retrainings import Retraining, Retrainings

_WORK = {
    "waiting": training.start_training,
    "running": training.watch_training,
    "registered": deploy.judge_version,
    "gated": deploy.deploy_version,
    "rolling_out": deploy.watch_rollout,
}


def run_step(hands: RetrainingContext, one: Retraining) -> None:
    """Does what the state asks for; what it cannot do is the end of the retraining, with the reason.

    Where the endpoint's spec cannot be read, it waits; what trains already goes on, and is watched.

    Raises:
        RegistryUnavailable / StoreUnavailable / NotReady: to be tried again.
    """
    if one.state != "rolling_out" and _is_deleted(hands, one):
        training.end_training(one)
        hands.fail(one, f"endpoint {one.endpoint!r} was deleted meanwhile")
        return
    try:
        _WORK[one.state](hands, one)
    except ServedModelChanged as error:
        hands.finish(one, "left", error.message)


def one_line(error: OnnxserveError) -> str:
    return " ".join(error.message.split())


def _is_deleted(hands: RetrainingContext, one: Retraining) -> bool:
    """Also where there is a namesake by now.

    Raises:
        NotReady: nobody can tell, and nothing is under way that has to be watched.
    """
    try:
        stored = hands.deployments.store.endpoint(one.endpoint)
    except InvalidConfig as error:
        if one.state != "running" or not one.reason:
            raise NotReady(error.message) from None
        return False
    return stored is None or stored.created_at > one.created_at


_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 10.0
MAX_DEFECTS = 6
"""After so many unexpected errors in a row, about a minute, it is ended: its model could not be trained otherwise."""


@dataclass
class _UnderWay:
    """The step that this process is at, when the next may be taken (monotonic), and how often in a row it has failed
    in a way that nobody has thought of."""

    worker: threading.Thread | None = None
    not_before: float = 0.0
    defects: int = 0


@dataclass
class _Process:
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: dict[tuple[str, int], _UnderWay] = field(default_factory=dict)


_process = _Process()


def advance_retrainings(deployments: Deployments, actor: str) -> None:
    """Begins what a schedule asks for, and takes every retraining that has not ended further; never waits for one.

    To be called again and again by whoever has the controller's lease. What a step was doing when the process ends is
    done again by the next one that calls.

    Raises:
        StoreUnavailable: it cannot be seen what there is to do.
    """
    request_scheduled(deployments, actor)
    live = Retrainings(deployments.store).find(live=True)
    with _process.lock:
        for one in live:
            known = _process.under_way.setdefault((deployments.settings.store_url, one.id), _UnderWay())
            if (known.worker is not None and known.worker.is_alive()) or known.not_before > time.monotonic():
                continue
            hands = RetrainingContext(deployments, actor, deployments.progress)
            # a daemon: its work may be cut off anywhere, and the process is not to wait for it
            known.worker = threading.Thread(target=_take, args=(hands, one, known), name="retrain", daemon=True)
            known.worker.start()


def start_local_rollouts(deployments: Deployments, actor: str) -> None:
    """Begins the rollouts that retrainings wait for and the controller that takes those further cannot begin: it does
    not see the server.

    To be called again and again by whoever takes the rollouts of the servers here further.

    Raises:
        StoreUnavailable: it cannot be seen what there is to do.
    """
    for one in Retrainings(deployments.store).find(live=True):
        if awaits_other_controller(one) and is_local(one.endpoint, deployments.settings):
            try_step(RetrainingContext(deployments, actor, deployments.progress), one)


def try_step(hands: RetrainingContext, one: Retraining) -> bool:
    """One step; False: it could not be taken now."""
    try:
        run_step(hands, one)
    except (RegistryUnavailable, StoreUnavailable, NotReady) as error:
        if one.reason != one_line(error):
            _log.warning("retraining %d, %s: again every %g s: %s", one.id, one.state, _AGAIN_SECONDS, error.message)
        if not isinstance(error, StoreUnavailable):
            hands.wait(one, one_line(error))
        return False
    except OnnxserveError as error:
        hands.fail(one, one_line(error))
    return True


def _take(hands: RetrainingContext, one: Retraining, known: _UnderWay) -> None:
    """Step after step until one has to be waited for."""
    pause, defects = _AGAIN_SECONDS, 0
    try:
        retrainings = Retrainings(hands.deployments.store)
        current: Retraining | None = one
        while current is not None and current.is_live and try_step(hands, current):
            before, current = current.state, retrainings.get(one.id)
            if current is None or not current.is_live or current.state == before:
                pause = _LOOK_SECONDS
                break
    except OnnxserveError as error:
        _log.warning("retraining %d: %s", one.id, error.message)
    except Exception as error:  # noqa: BLE001 — a boundary: one retraining must not end the others
        _log.exception("retraining %d cannot be taken further; again in %g s", one.id, _AGAIN_SECONDS)
        defects = known.defects + 1
        if defects >= MAX_DEFECTS:
            _give_up(hands, one, error)
    known.defects = defects
    known.not_before = time.monotonic() + pause


def _give_up(hands: RetrainingContext, one: Retraining, error: Exception) -> None:
    try:
        current = Retrainings(hands.deployments.store).get(one.id)
        if current is not None and current.is_live:
            hands.fail(current, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    except OnnxserveError as failure:
        _log.warning("retraining %d: %s", one.id, failure.message)
