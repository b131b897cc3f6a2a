"""Takes a retraining one step further. Every state is written down before the next one's work begins, and every step
looks first whether its work is done already, so that it may be done again after a crash in the middle of it.

    waiting       the rows are collected and the MLflow run is made
    running       `mlflow run` trains; it outlives the controller, and the next one adopts it
    registered    the run has registered a version; the gate judges it beside what is served
    gated         by the spec's `then`: a rollout, a proposal, or nothing
    rolling_out   the rollout brings it
    promoted, proposed, left, rolled_back, failed         the end
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_deploy_plugin.controller.retrain import child, journal, judged, tracked
from mlflow_deploy_plugin.controller.retrain.material import collect, remove
from mlflow_deploy_plugin.controller.retrain.plan import RetrainPlan, State
from mlflow_deploy_plugin.controller.retrain.served import AnotherModel, answering_version
from mlflow_deploy_plugin.controller.rollouts.begin import Wish, begin_rollout
from mlflow_deploy_plugin.controller.rollouts.journal import plan_of as rollout_plan_of
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.deployments.projects import check_project
from mlflow_deploy_plugin.errors import AlreadyExists, NotReady, OnnxserveError
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.monitoring.alerts import announce
from mlflow_deploy_plugin.registry.tags import CANDIDATE_TAG, tag_version
from mlflow_deploy_plugin.store import AuditEvent, Rollout
from mlflow_deploy_plugin.store.database import utc_now
from mlflow_deploy_plugin.store.retrainings import Retraining, Retrainings

ATTEMPTS = 2
"""A training that was killed from outside is begun once more; one that fails by itself is not."""
LONGEST_WAIT = timedelta(hours=1)
"""For an endpoint whose server does not run; then a person is asked."""


@dataclass(frozen=True)
class Steps:
    """The hands of a retraining.

    Attributes:
        actor: who stands in the audit trail for what is done.
        say: is told in one line each where it is.
    """

    deployments: Deployments
    actor: str
    say: Callable[[str], None] = lambda line: None
    clock: Callable[[], datetime] = utc_now

    def take(self, retraining: Retraining) -> None:
        """Does what the state asks for; what it cannot do is the end of the retraining, with the reason.

        Raises:
            RegistryUnavailable / StoreUnavailable / NotReady: to be tried again.
        """
        work = {
            "waiting": self._prepare,
            "running": self._watch,
            "registered": self._judge,
            "gated": self._decide,
            "rolling_out": self._follow,
        }
        if retraining.state != "rolling_out" and self._is_deleted(retraining):
            self._abandon(retraining)
            return
        try:
            work[retraining.state](retraining)
        except AnotherModel as error:
            self._finish(retraining, "left", error.message)

    def wait(self, retraining: Retraining, reason: str) -> None:
        """Says what it waits for, in the list of retrainings; once for the same."""
        if retraining.reason != reason:
            self._write(replace(retraining, reason=reason))

    def fail(self, retraining: Retraining, reason: str) -> None:
        """Ends it; people are told."""
        self._tell(retraining, f"retraining {retraining.id} of {retraining.model} has failed: {reason}")
        self._end(retraining, "failed", reason)

    def folder(self, retraining: Retraining) -> Path:
        attempt = retraining.figures.get("attempt", 1)
        return self.deployments.settings.home_path / "retrainings" / f"{retraining.id}-{attempt}"

    def _is_deleted(self, one: Retraining) -> bool:
        """Also where there is a namesake by now."""
        stored = self.deployments.store.endpoint(one.endpoint)
        return stored is None or stored.created_at > one.created_at

    def _abandon(self, one: Retraining) -> None:
        if one.run_id:
            child.end(one.run_id)
            tracked.end(one.run_id, "KILLED")
        self.fail(one, f"endpoint {one.endpoint!r} was deleted meanwhile")

    def _prepare(self, one: Retraining) -> None:
        plan = journal.plan_of(one)
        check_project(plan.project, plan.entry_point)
        folder = self.folder(one)
        types = tracked.column_types(plan.base_uri)
        material = collect(open_log(self.deployments.settings.inference_log), plan, folder, types)
        figures = {
            "attempt": one.figures.get("attempt", 1),
            "host": child.host(),
            "rows": material.rows,
            "held_out_rows": material.held_out_rows,
            "window": str(material.window),
            "started_at": self.clock().isoformat(),
        }
        parameters = _parameters(plan, material.data)
        run_id = tracked.run_for(one, plan, figures["attempt"], parameters)
        if material.held_out is not None:
            figures |= {"dataset": tracked.keep(run_id, material.held_out), "target": material.target}
        running = replace(one, state="running", run_id=run_id, figures=figures, reason="")
        written = self._write(running, journal.running(running, self.actor, self.clock()))
        if written is not None:
            child.start(plan, run_id, parameters, folder)

    def _watch(self, one: Retraining) -> None:
        plan, figures = journal.plan_of(one), one.figures
        deadline = datetime.fromisoformat(figures["started_at"]) + timedelta(seconds=plan.timeout)
        is_here = figures["host"] == child.host()
        if is_here and child.is_alive(one.run_id):
            if self.clock() > deadline:
                self._end_late(one, plan)
            return
        status = tracked.status(one.run_id)
        if status == "FAILED" or (status == "RUNNING" and child.has_failed(one.run_id)):
            tracked.end(one.run_id, "FAILED")
            self.fail(one, f"the run failed: {child.last_line(self.folder(one)) or 'it has said nothing'}")
        elif version := tracked.version_of(plan.model, one.run_id):
            tracked.tag(one, plan, version)
            registered = replace(one, state="registered", version=version, reason="")
            self._write(registered, journal.registered(registered, self.actor, self.clock()))
        elif status == "FINISHED":
            self.fail(one, f"the run has registered no version of {plan.model}")
        elif self.clock() > deadline:
            self._end_late(one, plan)
        elif is_here:
            self._begin_again(one)

    def _end_late(self, one: Retraining, plan: RetrainPlan) -> None:
        child.end(one.run_id)
        tracked.end(one.run_id, "KILLED")
        self.fail(one, f"the run took longer than {plan.timeout:g} s and was ended")

    def _begin_again(self, one: Retraining) -> None:
        """Nothing of the training is left: it was killed, or the machine has stopped."""
        attempt = one.figures["attempt"]
        child.end(one.run_id)
        tracked.end(one.run_id, "KILLED")
        if attempt >= ATTEMPTS:
            self.fail(one, f"the run was killed {attempt} times: {child.last_line(self.folder(one))}".rstrip(": "))
            return
        reason = f"run {one.run_id} was killed before its end; it is begun once more"
        self._write(replace(one, state="waiting", run_id="", figures={"attempt": attempt + 1}, reason=reason))

    def _judge(self, one: Retraining) -> None:
        plan, store = journal.plan_of(one), self.deployments.store
        served = answering_version(self.deployments, plan.endpoint, plan.model)
        against = served if served not in ("", one.version) else plan.base_version
        dataset, target = one.figures.get("dataset", ""), one.figures.get("target", "")
        gated = judged.judge_candidate(plan, one.version, against, dataset, target, self.actor, store)
        figures = one.figures | judged.figures_of(gated.verdict)
        figures |= {"gate": gated.verdict.state, "gate_reason": gated.verdict.reason, "gate_report": gated.report}
        figures |= {"against": against, "gated_at": self.clock().isoformat()}
        self._write(replace(one, state="gated", figures=figures, reason=""))

    def _decide(self, one: Retraining) -> None:
        plan = journal.plan_of(one)
        if one.figures["gate"] != "passed":
            self._finish(one, "left", f"it has not passed its gate: {one.figures['gate_reason']}")
            return
        served, against = (
            answering_version(self.deployments, plan.endpoint, plan.model),
            one.figures.get("against", plan.base_version),
        )
        if self._rollout_of(one, plan) is not None:
            self._roll_out(one, plan)
        elif served == one.version:
            self._finish(one, "promoted", "somebody has brought it already: it is served")
        elif served not in ("", against):
            reason = f"version {served} is served now, and it was judged beside {against}"
            self._write(replace(one, state="registered", reason=reason))
        elif plan.then == "rollout":
            self._roll_out(one, plan)
        elif plan.then == "propose":
            where = f"`onnxserve rollout {plan.endpoint} --to {one.version}` brings it"
            self._finish(one, "proposed", f"it has passed its gate ({one.figures['gate_reason']}): {where}")
        else:
            self._finish(one, "left", f"it has passed its gate ({one.figures['gate_reason']}) and is left as it is")

    def _roll_out(self, one: Retraining, plan: RetrainPlan) -> None:
        rollout = self._rollout_of(one, plan)
        if rollout is None:
            why = f"retraining {one.id}: {one.cause['why']}"
            wish = Wish(
                f"models:/{plan.model}/{one.version}",
                plan.steps,
                plan.step_every,
                min_requests=plan.min_requests,
                why=why,
            )
            if others := self.deployments.store.rollouts(plan.endpoint, live=True):
                self.wait(one, f"waits for the end of rollout {others[0].id} of the endpoint")
                return
            try:
                rollout = begin_rollout(self.deployments, plan.endpoint, wish, self.actor)
            except AlreadyExists as error:  # another one has begun just now
                self.wait(one, error.message)
                return
            except NotReady as error:
                self._wait_for_server(one, plan, error.message)
                return
        tag_version(plan.model, one.version, CANDIDATE_TAG, f"rollout {rollout.id} of endpoint {plan.endpoint}")
        self._write(replace(one, state="rolling_out", rollout_id=rollout.id, reason=""))

    def _wait_for_server(self, one: Retraining, plan: RetrainPlan, why: str) -> None:
        since = datetime.fromisoformat(one.figures.get("gated_at", one.created_at.isoformat()))
        if self.clock() - since < LONGEST_WAIT:
            self.wait(one, f"waits for the endpoint: {why}")
            return
        self._finish(
            one,
            "proposed",
            f"it has passed its gate ({one.figures['gate_reason']}), and the endpoint has not been ready for a rollout "
            f"for {LONGEST_WAIT.total_seconds():g} s ({why}): `onnxserve rollout {plan.endpoint} --to {one.version}` "
            "brings it",
        )

    def _rollout_of(self, one: Retraining, plan: RetrainPlan) -> Rollout | None:
        """That an earlier attempt at this step has begun."""
        for rollout in self.deployments.store.rollouts(plan.endpoint):
            begun = rollout_plan_of(rollout)
            if (begun.model, begun.version) == (plan.model, one.version) and rollout.created_at >= one.created_at:
                return rollout
        return None

    def _follow(self, one: Retraining) -> None:
        found = [rollout for rollout in self.deployments.store.rollouts(one.endpoint) if rollout.id == one.rollout_id]
        if not found:
            self.fail(one, f"rollout {one.rollout_id} is gone")
        elif not found[0].is_live:
            state: State = "promoted" if found[0].state == "promoted" else "rolled_back"
            self._end(one, state, found[0].reason)

    def _finish(self, one: Retraining, state: State, reason: str) -> None:
        """The end of a version that no rollout brings: its tag says what it is."""
        plan = journal.plan_of(one)
        tag_version(plan.model, one.version, CANDIDATE_TAG, state)
        if state == "proposed":
            self._tell(one, f"{plan.model} version {one.version} is proposed: {reason}")
        self._end(one, state, reason)

    def _tell(self, one: Retraining, text: str) -> None:
        """Tells people, once, before it is written down that they were told."""
        link = str(one.figures.get("gate_report") or one.cause.get("report", ""))
        is_page = link.startswith(("http://", "https://"))
        announce(self.deployments.store, one.endpoint, one.monitor, f"{one.endpoint}: {text}", link if is_page else "")

    def _end(self, one: Retraining, state: State, reason: str) -> None:
        now = self.clock()
        ended = replace(one, state=state, reason=reason, ended_at=now)
        written = self._write(ended, journal.ended(ended, self.actor, now))
        if written is not None and state != "failed":  # of one that failed a person may want to see the rows
            remove(self.folder(one))

    def _write(self, changed: Retraining, event: AuditEvent | None = None) -> Retraining | None:
        """None where somebody else has taken it further meanwhile."""
        written = Retrainings(self.deployments.store, self.clock).update(changed, event)
        if written is not None:
            self.say(journal.shown(written))
        return written


def _parameters(plan: RetrainPlan, data: Path) -> dict[str, str]:
    """What every project of a retraining is given, and what the spec adds, which wins."""
    own = {"mode": plan.mode, "data": str(data), "base_model": plan.base_uri, "registered_model": plan.model}
    return own | {name: _text(value) for name, value in plan.parameters.items()}


def _text(value: str | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def reason_of(error: OnnxserveError) -> str:
    return " ".join(error.message.split())
