"""Labels of earlier predictions: a real server of either worker accepts them, or
refuses them with the reason.
"""

from itertools import chain

import orjson
import pytest

from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask
from mlflow_deploy_plugin.serve.spool.codec import Feedback
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from tests.support.disk import files_of_at_most
from tests.support.handling import ask
from tests.support.refusals import mentions
from tests.support.servers import variant

BATCH = {
    "feedback": [
        {"prediction_id": "p1", "row": 2, "label": "yes"},
        {"prediction_id": "p2", "label": 1.5},
        {"key": {"hour": 7}, "label": None},
    ]
}


@pytest.fixture
def server(serve_here, model_folders):
    return serve_here(
        {"flights": {"v": variant(model_folders["mixed"])}}, mask=["carrier"], drop=["distance"]
    )


def give(server, body, path="/feedback", content_type="application/json"):
    return ask(server, path, body=body, content_type=content_type)


def kept(spool):
    return list(chain.from_iterable(read_batches(segment).feedback for segment in segments(spool)))


def test_accepted_labels_are_in_spool(server):
    for path, body, accepted in (
        ("/feedback", {"prediction_id": "p0", "row": 0, "label": True}, 1),
        ("/endpoints/flights/feedback", BATCH, 3),
    ):
        response = give(server, body, path)
        assert response.status == 202
        assert orjson.loads(response.body) == {"accepted": accepted}
    first, second = kept(server.repository.state_dir / SPOOL)
    assert first.endpoint == second.endpoint == "flights"
    assert first.entries == (Feedback("p0", 0, None, True),)
    assert second.entries == (
        Feedback("p1", 2, None, "yes"),
        Feedback("p2", None, None, 1.5),
        Feedback(None, None, {"hour": 7}, None),
    )
    assert 0 < first.received_time <= second.received_time
    assert first.offset < second.offset
    page = server.metrics.page()
    assert b'onnxserve_feedback_labels_total{outcome="accepted"} 4.0' in page


def test_masked_key_columns_are_masked(server):
    assert give(server, {"key": {"carrier": "AA", "_request_id": "r"}, "label": 1}).status == 202
    (frame,) = kept(server.repository.state_dir / SPOOL)
    masked = ColumnMask(server.repository.state_dir / "mask.key").hash_values(
        {"carrier": "AA"}, frozenset({"carrier"})
    )
    assert frame.entries == (Feedback(None, None, masked | {"_request_id": "r"}, 1),)


ONE = {"label": 1, "prediction_id": "p"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "no label"),
        ({"label": 1}, "either a prediction_id or a key"),
        ({**ONE, "label": [1]}, "label is [1]"),
        ({**ONE, "label": "x" * 1001}, "1001 characters"),
        ({**ONE, "prediction_id": ""}, "prediction_id is ''"),
        ({**ONE, "row": -1}, "row is -1"),
        ({**ONE, "row": True}, "row is true"),
        ({"label": 1, "key": {"hour": 1}, "row": 0}, "row requires a prediction_id"),
        ({"label": 1, "key": {"hour": {}}}, "key.hour is {}"),
        ({"label": 1, "key": {"hours": 1}}, "did you mean 'hour'?"),
        ({"label": 1, "key": {"distance": 1}}, "key names 'distance'"),
        ({"label": 1, "prediction": "p"}, "prediction is not known"),
        ({"feedback": {}}, "feedback is {}"),
        ({"feedback": [ONE] * 10_001}, "10001 entries"),
        ({"feedback": [ONE, 7]}, "feedback[1] is 7"),
        (
            {"feedback": [{"label": 1, "key": {f"c{place}": 1}} for place in range(17)]},
            "more than 16 different sets of key columns",
        ),
        ({"feedback": [], "label": 1}, "'label' next to 'feedback'"),
        (b'{"prediction_id": "p", "label": NaN}', "label is nan"),
        (b'{"key": {"hour": Infinity}, "label": 1}', "key.hour is inf"),
        (b'{"key": {"hour": NaN, "carrier": "\\ud800"}, "label": 1}', "not valid JSON"),
    ],
)
def test_invalid_feedback_is_refused(server, body, named):
    response = give(server, body)
    assert response.status == 400
    assert named in orjson.loads(response.body)["message"]
    assert kept(server.repository.state_dir / SPOOL) == []


def test_nan_and_huge_numbers_are_kept(server):
    body = (
        b'{"feedback": [{"key": {"hour": NaN}, "label": %d}, {"prediction_id": "p", "label": %d}]}'
        % (10**23, -7)
    )
    assert give(server, body).status == 202
    (frame,) = kept(server.repository.state_dir / SPOOL)
    assert frame.entries == (
        Feedback(None, None, {"hour": None}, 1e23),
        Feedback("p", None, None, -7),
    )


def test_csv_and_unknown_endpoint_are_refused(server):
    assert give(server, b"a,b", content_type="text/csv").status == 415
    response = give(server, ONE, "/endpoints/flight/feedback")
    assert response.status == 404
    assert orjson.loads(response.body)["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_full_disk_is_answered_with_503(server):
    with files_of_at_most(0):
        response = give(server, ONE)
    assert response.status == 503
    assert response.headers["Retry-After"] == "30"
    assert give(server, ONE).status == 202
    assert len(kept(server.repository.state_dir / SPOOL)) == 1


def test_path_of_broken_spool_is_hidden(server):
    (server.repository.state_dir / SPOOL).write_text("in its place")
    response = give(server, ONE)
    assert response.status == 503
    assert mentions(orjson.loads(response.body)["message"], "cannot be stored", "Not a directory")
    assert str(server.repository.state_dir).encode() not in response.body
