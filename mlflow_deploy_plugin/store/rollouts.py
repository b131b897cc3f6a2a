"""Rollouts in the store: plan, progress and figures of each."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.store.tables import RolloutRow, from_row, given


@dataclass(frozen=True)
class Rollout:
    """One rollout of an endpoint; an endpoint has at most one that is live.

    Attributes:
        spec: the plan (`controller/rollouts/plan.py`); never changed.
        state: one of `controller/rollouts/state_machine.py`.
        step: index into the steps of `spec`.
        step_at: when the step began, for people.
        figures: the figures that the step is judged by.
        reason: why it is in this state.
        revision: grows with every write; one with an older revision is refused.
        ended_at: None while it is live.
    """

    id: int
    endpoint: str
    spec: dict[str, Any]
    state: str
    step: int
    step_at: datetime
    figures: dict[str, Any]
    reason: str
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    revision: int = 0

    @property
    def is_live(self) -> bool:
        return self.ended_at is None


def add(session: Session, endpoint: str, spec: dict[str, Any], state: str, now: datetime) -> Rollout:
    row = RolloutRow(endpoint=endpoint, spec=spec, state=state, step_at=now, created_at=now, updated_at=now)
    session.add(row)
    session.flush()
    return from_row(row, Rollout)


def find(session: Session, endpoint: str | None, live: bool) -> list[Rollout]:
    """Return rollouts, oldest first; with `live` only those that have not ended."""
    query = select(RolloutRow).filter_by(**given(endpoint=endpoint)).order_by(RolloutRow.id)
    if live:
        query = query.where(RolloutRow.ended_at.is_(None))
    return [from_row(row, Rollout) for row in session.scalars(query)]


def update(session: Session, rollout: Rollout, now: datetime) -> Rollout | None:
    """Write state, step, figures, reason and end of `rollout`. Return None if it was changed since it was read."""
    query = select(RolloutRow).where(RolloutRow.id == rollout.id).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None or row.revision != rollout.revision or row.ended_at is not None:
        return None
    row.state, row.step, row.step_at = rollout.state, rollout.step, rollout.step_at
    row.figures, row.reason = rollout.figures, rollout.reason
    row.updated_at, row.ended_at = now, rollout.ended_at
    row.revision += 1
    session.flush()
    return from_row(row, Rollout)


def end(session: Session, endpoint: str, state: str, reason: str, now: datetime) -> list[Rollout]:
    """End the live rollouts of an endpoint, and return them."""
    live = find(session, endpoint, live=True)
    ended = [update(session, replace(one, state=state, reason=reason, ended_at=now), now) for one in live]
    return [one for one in ended if one is not None]
