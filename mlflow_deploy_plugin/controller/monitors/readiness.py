"""How far the log of an endpoint is complete, as its agents say."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlflow_deploy_plugin.inference_log.watermarks import Watermark

SILENT_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class Readiness:
    """What the agents of an endpoint say.

    Attributes:
        complete_until: every row that came before is in the log; None: no agent is waited for.
        notes: which agents are not waited for, and why.
    """

    complete_until: datetime | None
    notes: tuple[str, ...] = ()

    def covers(self, time: datetime) -> bool:
        return self.complete_until is None or self.complete_until >= time


def readiness(marks: Sequence[Watermark], endpoint: str, now: datetime) -> Readiness:
    """Of the agents that may still ship rows: not of those that have ended, or that say nothing for an hour.

    One whose last word lies more than an hour ahead has a wrong clock, and is not waited for either.
    """
    waited_for: list[datetime] = []
    notes = []
    for mark in marks:
        if endpoint not in mark.endpoints or mark.ended:
            continue
        if now - mark.written_at > SILENT_AFTER:
            notes.append(
                f"the agent {mark.agent} says nothing since {mark.written_at:%Y-%m-%d %H:%M:%S} UTC: its rows are not "
                "waited for"
            )
        elif mark.written_at - now > SILENT_AFTER:
            notes.append(f"the clock of the agent {mark.agent} is ahead by an hour or more: it is not waited for")
        else:
            waited_for.append(mark.complete_until)
    return Readiness(min(waited_for, default=None), tuple(notes))
