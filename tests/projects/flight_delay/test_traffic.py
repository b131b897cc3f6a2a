"""Tests of sending real flights to a listener that records every request."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest, NotReady
from projects.flight_delay import data, traffic


class _Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, int]] = []
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["dataframe_split"][
            "data"
        ]
        self.server.requests.append((self.headers["X-Event-Time"], len(rows)))
        body = json.dumps(
            {"predictions": [False] * len(rows)}
            if self.server.status == 200
            else {"message": "bad"}
        )
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Model-Version", "3")
        self.send_header("X-Prediction-Id", f"p{len(self.server.requests)}")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with _Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def two_days():
    flights = data.load_flights()
    days = [pd.Timestamp("2013-07-04", tz="UTC"), pd.Timestamp("2013-07-05", tz="UTC")]
    return flights[flights[data.DAY].isin(days)]


@pytest.mark.long
def test_flights_are_sent_once_with_their_hour(server, two_days):
    heard: list[tuple[str, int]] = []
    url = f"http://127.0.0.1:{server.server_port}"

    answers = traffic.send(url, two_days, lambda day, count: heard.append((str(day.date()), count)))

    assert [day for day, _ in heard] == ["2013-07-04", "2013-07-05"]
    sent = pd.DataFrame(server.requests, columns=["hour", "rows"]).groupby("hour")["rows"].sum()
    wanted = two_days.groupby(data.EVENT_TIME).size()
    assert sent.tolist() == wanted.tolist()
    assert answers.versions == {"3": len(server.requests)}
    assert answers.table[data.LABEL].tolist() == two_days[data.LABEL].tolist()
    assert not answers.table.duplicated(["prediction_id", "row"]).any()


@pytest.mark.parametrize(("status", "error"), [(400, InvalidRequest), (503, NotReady)])
def test_server_error_is_raised(server, two_days, status, error):
    server.status = status
    with pytest.raises(error, match="bad"):
        traffic.send(f"http://127.0.0.1:{server.server_port}", two_days)
