"""A clock that the test sets."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Moment = TypeVar("Moment")


@dataclass
class Clock(Generic[Moment]):
    """Returns `now`: seconds, or a datetime."""

    now: Moment

    def __call__(self):
        return self.now

    def pass_by(self: "Clock[datetime]", **length: float) -> None:
        self.now += timedelta(**length)
