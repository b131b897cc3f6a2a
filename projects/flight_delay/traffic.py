"""Send real flights of selected days to a server, hour by hour, as an airline's system
would.

    python -m projects.flight_delay.traffic --url http://127.0.0.1:8080 \\
        --day 2013-07-04 --day 2013-07-05

Each request sets `X-Event-Time` to the hour of its flights, so that the inference log
and the monitors see the days of 2013 instead of the time of the replay.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pandas as pd
import requests

from mlflow_deploy_plugin.core.errors import InvalidRequest, NotReady
from projects.command import one_line_errors
from projects.flight_delay.data import DAY, EVENT_TIME, FEATURES, LABEL, load_flights

BATCH_ROWS = 200
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Answers:
    """The responses for some flights.

    Attributes:
        table: one row per flight, in the order of sending: prediction_id, row (in its
            request), event_time, prediction, and LABEL. A real system receives the
            label hours later and joins it by prediction_id and row.
        versions: the number of answered requests by model version.
    """

    table: pd.DataFrame
    versions: Counter[str] = field(default_factory=Counter)


def send(
    url: str,
    flights: pd.DataFrame,
    on_day: Callable[[pd.Timestamp, int], None] | None = None,
) -> Answers:
    """Send the flights in the order of event time. `on_day` is called after each day,
    with its number of flights.

    Raises:
        NotReady: the server does not respond, or responds with 5xx.
        InvalidRequest: the server refuses a batch; the message contains its response.
    """
    answers: list[pd.DataFrame] = []
    versions: Counter[str] = Counter()
    with requests.Session() as session:
        for _, of_day in flights.groupby(DAY, sort=True):
            for _, of_hour in of_day.groupby(EVENT_TIME, sort=True):
                for start in range(0, len(of_hour), BATCH_ROWS):
                    batch = of_hour.iloc[start : start + BATCH_ROWS]
                    response = _post(session, url, batch, of_hour[EVENT_TIME].iloc[0])
                    versions[response.headers.get("X-Model-Version", "")] += 1
                    answers.append(_answered(response, batch))
            if on_day is not None:
                on_day(of_day[DAY].iloc[0], len(of_day))
    return Answers(pd.concat(answers, ignore_index=True), versions)


def request_body(flights: pd.DataFrame) -> bytes:
    """Return the features as MLflow's dataframe_split JSON; a missing value is null."""
    features = flights[list(FEATURES)].astype(object)
    rows = features.where(features.notna(), None).to_numpy().tolist()
    return json.dumps({"dataframe_split": {"columns": list(FEATURES), "data": rows}}).encode()


def _post(
    session: requests.Session,
    url: str,
    batch: pd.DataFrame,
    event_time: pd.Timestamp,
) -> Any:
    headers = {"Content-Type": "application/json", "X-Event-Time": event_time.isoformat()}
    try:
        response = session.post(
            f"{url}/invocations",
            data=request_body(batch),
            headers=headers,
            timeout=TIMEOUT_SECONDS,
        )
    except requests.RequestException as error:
        raise NotReady(f"{url} does not answer: {type(error).__name__}") from None
    if response.status_code >= 500:
        raise NotReady(f"{url} answered {response.status_code}: {response.text[:300]}")
    if response.status_code >= 400:
        raise InvalidRequest(
            f"{url} refused the flights of {event_time.isoformat()}: {response.text[:300]}",
        )
    return response


def _answered(response: requests.Response, batch: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prediction_id": response.headers.get("X-Prediction-Id", ""),
            "row": range(len(batch)),
            EVENT_TIME: batch[EVENT_TIME].to_numpy(),
            "prediction": response.json()["predictions"],
            LABEL: batch[LABEL].to_numpy(),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--url",
        required=True,
        help="URL of the server, e.g. http://127.0.0.1:8080",
    )
    parser.add_argument(
        "--day",
        type=date.fromisoformat,
        action="append",
        required=True,
        help="day of 2013 in UTC, e.g. 2013-07-04; may be repeated",
    )
    options = parser.parse_args()
    flights = load_flights()
    for day in options.day:
        if not (flights[DAY] == pd.Timestamp(day, tz="UTC")).any():
            parser.error(f"no flight left on {day}; the data contain only 2013")
    chosen = flights[flights[DAY].isin([pd.Timestamp(day, tz="UTC") for day in options.day])]
    with one_line_errors():
        answers = send(
            options.url,
            chosen,
            lambda day, count: print(f"{day.date()}  {count:5,} flights", flush=True),
        )
    right = (answers.table["prediction"].astype(bool) == answers.table[LABEL]).mean()
    print(
        f"{len(answers.table):,} flights, {right:.1%} predicted correctly, by versions "
        f"{dict(answers.versions)}",
    )


if __name__ == "__main__":
    main()
