"""Tests of sending real flights to a listener that records every request."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest, NotReady
from projects.flight_delay import data, traffic
from tests.support.services.listener import answering


@pytest.fixture
def server():
    """A listener that keeps the hour and the number of rows of each request."""
    heard = SimpleNamespace(requests=[], status=200, url="")

    def answer(request, body):
        rows = json.loads(body)["dataframe_split"]["data"]
        heard.requests.append((request.headers["X-Event-Time"], len(rows)))
        answers = (
            {"predictions": [False] * len(rows)} if heard.status == 200 else {"message": "bad"}
        )
        prediction = ("X-Prediction-Id", f"p{len(heard.requests)}")
        version = ("X-Model-Version", "3")
        return heard.status, "application/json", json.dumps(answers), version, prediction

    with answering(answer) as heard.url:
        yield heard


@pytest.fixture(scope="module")
def two_days():
    flights = data.load_flights()
    days = [pd.Timestamp("2013-07-04", tz="UTC"), pd.Timestamp("2013-07-05", tz="UTC")]
    return flights[flights[data.DAY].isin(days)]


@pytest.mark.long
def test_flights_are_sent_once_with_their_hour(server, two_days):
    heard = []

    answers = traffic.send(
        server.url, two_days, lambda day, count: heard.append((str(day.date()), count))
    )

    assert [day for day, _ in heard] == ["2013-07-04", "2013-07-05"]
    sent = pd.DataFrame(server.requests, columns=["hour", "rows"]).groupby("hour")["rows"].sum()
    wanted = two_days.groupby(data.EVENT_TIME).size()
    assert sent.tolist() == wanted.tolist()
    assert answers.versions == {"3": len(server.requests)}
    assert answers.table[data.LABEL].tolist() == two_days[data.LABEL].tolist()
    assert not answers.table.duplicated(["prediction_id", "row"]).any()


@pytest.mark.parametrize(("status", "error"), [(400, InvalidRequest), (503, NotReady)])
def test_server_error_is_raised(server, status, error):
    server.status = status
    hour = pd.Timestamp("2013-07-04 06:00", tz="UTC")
    flight = dict.fromkeys(data.FEATURES, 1) | {data.EVENT_TIME: hour, data.DAY: hour.floor("D")}
    with pytest.raises(error, match="bad"):
        traffic.send(server.url, pd.DataFrame([flight]))
