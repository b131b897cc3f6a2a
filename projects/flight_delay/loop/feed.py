"""The traffic of the replay: flights in the order of event time, with labels one day
later and counts of requests.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import requests

from projects.flight_delay.data import EVENT_TIME, LABEL
from projects.flight_delay.traffic import request_body

TIMEOUT_SECONDS = 60
_JSON = {"Content-Type": "application/json"}
_MOST_LABELS = 5_000


@dataclass
class Counts:
    """The numbers of requests, flights and labels. `lost` counts requests without a
    successful response.
    """

    requests: int = 0
    answered: int = 0
    lost: int = 0
    flights: int = 0
    labels: int = 0
    labels_lost: int = 0
    by_version: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """An answered request with its prediction id and the labels of its flights."""

    prediction_id: str
    labels: list[bool]


class Feed:
    """A sender of flights, with `batch` flights per request.

    Attributes:
        answers: tables of responses with the index of the flights, `prediction` and
            `version`.
    """

    def __init__(self, url: str, batch: int) -> None:
        self._url = url
        self._batch = batch
        self._session = requests.Session()
        self._unlabelled: list[list[_Asked]] = []
        self.counts = Counts()
        self.answers: list[pd.DataFrame] = []

    def day(self, flights: pd.DataFrame) -> None:
        """Send the flights of a day, hour by hour, and then the labels of the previous
        day.
        """
        answered = []
        tables = []
        for _, of_hour in flights.groupby(EVENT_TIME, sort=True):
            for start in range(0, len(of_hour), self._batch):
                batch = of_hour.iloc[start : start + self._batch]
                answer = self._ask(batch)
                if answer is None:
                    continue
                version = answer.headers.get("X-Model-Version", "")
                self.counts.by_version[version] = self.counts.by_version.get(version, 0) + len(
                    batch,
                )
                answered.append(_Asked(answer.headers["X-Prediction-Id"], batch[LABEL].tolist()))
                predictions = np.asarray(answer.json()["predictions"]).astype(bool)
                tables.append(
                    pd.DataFrame(
                        {"prediction": predictions, "version": version}, index=batch.index
                    ),
                )
        self.answers.extend(tables)
        self._unlabelled.append(answered)
        if len(self._unlabelled) > 1:
            self._label(self._unlabelled.pop(0))

    def rest(self) -> None:
        """Send the labels of the last day."""
        while self._unlabelled:
            self._label(self._unlabelled.pop(0))

    def table(self) -> pd.DataFrame:
        """Return all predictions."""
        return pd.concat(self.answers)

    def _ask(self, batch: pd.DataFrame) -> requests.Response | None:
        self.counts.requests += 1
        headers = {**_JSON, "X-Event-Time": batch[EVENT_TIME].iloc[0].isoformat()}
        try:
            answer = self._session.post(
                f"{self._url}/invocations",
                data=request_body(batch),
                headers=headers,
                timeout=TIMEOUT_SECONDS,
            )
        except requests.RequestException:
            self.counts.lost += 1
            return None
        if not answer.ok:
            self.counts.lost += 1
            return None
        self.counts.answered += 1
        self.counts.flights += len(batch)
        return answer

    def _label(self, requests_: list[_Asked]) -> None:
        entries = [
            {"prediction_id": request.prediction_id, "row": row, "label": int(label)}
            for request in requests_
            for row, label in enumerate(request.labels)
        ]
        for start in range(0, len(entries), _MOST_LABELS):
            some = entries[start : start + _MOST_LABELS]
            try:
                answer = self._session.post(
                    f"{self._url}/feedback",
                    json={"feedback": some},
                    timeout=TIMEOUT_SECONDS,
                )
                accepted = int(answer.json()["accepted"]) if answer.ok else 0
            except (requests.RequestException, ValueError, KeyError):
                accepted = 0
            self.counts.labels += accepted
            self.counts.labels_lost += len(some) - accepted
