"""Retrainings in the store, with their cause, plan, progress and outcome."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select

from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.store.audit import AuditEvent, save_row
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import (
    Json,
    RetrainingFigures,
    RetrainingRow,
    from_row,
    given,
    write_fields,
)

WaitsFor = Literal["", "local_controller"]
"""The controller that a retraining waits for, if any: a controller that can reach the
server, to start a rollout.
"""

_WRITTEN = (
    "state",
    "run_id",
    "version",
    "rollout_id",
    "reason",
    "figures",
    "ended_at",
    "waits_for",
)


@dataclass(frozen=True)
class Retraining:
    """A retraining. A model has at most one live retraining.

    Attributes:
        monitor: the monitor whose alarm or spec requested the retraining.
        cause: the result, the schedule or the user; `why` contains the cause as a
            sentence.
        spec: the plan (`watch/retraining/plan.py`); never changed.
        state: a state of `watch/retraining/runner.py`; `reason` explains the state to
            users.
        run_id / version: the MLflow run of the training, and the version that the run
            registered; empty until known.
        rollout_id: the rollout of the version.
        ended_at: None while the retraining is live.
        waits_for: another process that must advance the retraining.
    """

    id: int
    endpoint: str
    monitor: str
    model: str
    cause: Json
    spec: Json
    state: str
    run_id: str
    version: str
    rollout_id: int | None
    reason: str
    figures: RetrainingFigures
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    waits_for: WaitsFor = ""

    @property
    def is_live(self) -> bool:
        return self.ended_at is None

    @property
    def has_trained(self) -> bool:
        """Return True if a run of the project was started, even if the run failed."""
        return bool(self.run_id) or self.figures.attempt is not None


@dataclass(frozen=True)
class Retrainings:
    store: Store

    def add(
        self,
        endpoint: str,
        monitor: str,
        model: str,
        cause: Json,
        spec: Json,
        event: AuditEvent | None = None,
    ) -> Retraining:
        """Add a waiting retraining with its event. Raises AlreadyExists if the model
        has a live retraining.
        """
        now = self.store.now()
        with self.store.transaction(alone_with=f"retraining of {model}") as session:
            live = select(RetrainingRow).filter_by(model=model, ended_at=None)
            if (other := session.scalars(live.limit(1)).first()) is not None:
                raise AlreadyExists(
                    f"model {model} is already being trained: retraining {other.id} is "
                    f"{other.state}",
                )
            row = RetrainingRow(
                endpoint=endpoint,
                monitor=monitor,
                model=model,
                cause=cause,
                spec=spec,
                state="waiting",
                created_at=now,
                updated_at=now,
            )
            return save_row(session, row, Retraining, event)

    def find(
        self,
        endpoint: str | None = None,
        model: str | None = None,
        live: bool = False,
    ) -> list[Retraining]:
        """Return retrainings, oldest first. If `live` is True, return only live
        retrainings.
        """
        query = select(RetrainingRow).filter_by(**given(endpoint=endpoint, model=model))
        if live:
            query = query.filter_by(ended_at=None)
        return self.store.read(query.order_by(RetrainingRow.id), Retraining)

    def get(self, number: int) -> Retraining | None:
        with self.store.reading() as session:
            row = session.get(RetrainingRow, number)
            return None if row is None else from_row(row, Retraining)

    def update(self, retraining: Retraining, event: AuditEvent | None = None) -> Retraining | None:
        """Write the mutable fields and the event. Return None if the row has ended or
        was changed since it was read.
        """
        with self.store.transaction() as session:
            row = session.get(RetrainingRow, retraining.id, with_for_update=True)
            if row is None or row.ended_at is not None or row.updated_at != retraining.updated_at:
                return None
            write_fields(row, retraining, *_WRITTEN)
            # Each write needs a different time, even if the clock does not advance.
            row.updated_at = max(
                self.store.now(),
                row.updated_at + timedelta(microseconds=1),
            )
            return save_row(session, row, Retraining, event)
