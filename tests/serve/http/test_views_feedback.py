"""Labels of earlier predictions: a real server of either worker accepts them, or
refuses them with the reason.
"""

from itertools import chain

import orjson
import pytest
import requests

from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask
from mlflow_deploy_plugin.serve.spool.codec import Feedback
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import read_batches
from tests.support.disk import files_of_at_most
from tests.support.handling import ask
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, variant

BATCH = {
    "feedback": [
        {"prediction_id": "p1", "row": 2, "label": "yes"},
        {"prediction_id": "p2", "label": 1.5},
        {"key": {"carrier": "AA", "hour": 7}, "label": None},
    ]
}
ROW = {"carrier": "AA", "distance": 5.0, "hour": 3, "late": True}


@pytest.fixture
def server(serve_here, model_folders):
    return serve_here(
        {"flights": {"v": variant(model_folders["mixed"])}}, mask=["carrier"], drop=["distance"]
    )


def give(server, body, path="/feedback", content_type="application/json"):
    return ask(server, path, body=body, content_type=content_type)


def kept(spool):
    return list(chain.from_iterable(read_batches(segment).feedback for segment in segments(spool)))


def test_labels_of_one_and_of_many_are_in_the_spool_when_they_are_accepted(tmp_path, model_folders):
    with gunicorn(tmp_path, {"flights": {"v": variant(model_folders["mixed"])}}) as running:
        predicted = running.post(json={"dataframe_records": [ROW]})
        label = {"prediction_id": predicted.headers["X-Prediction-Id"], "row": 0, "label": True}
        for path, body, accepted in (
            ("/feedback", label, 1),
            ("/endpoints/flights/feedback", BATCH, 3),
        ):
            answered = running.post(path, json=body)
            assert answered.status_code == 202
            assert answered.json() == {"accepted": accepted}
        first, second = kept(tmp_path / SPOOL)
        assert first.endpoint == second.endpoint == "flights"
        assert first.entries == (Feedback(predicted.headers["X-Prediction-Id"], 0, None, True),)
        assert second.entries == (
            Feedback("p1", 2, None, "yes"),
            Feedback("p2", None, None, 1.5),
            Feedback(None, None, {"carrier": "AA", "hour": 7}, None),
        )
        assert 0 < first.received_time <= second.received_time
        assert first.offset < second.offset
        page = running.url + "/metrics"
        assert (
            b'onnxserve_feedback_labels_total{outcome="accepted"} 4.0'
            in requests.get(page, timeout=30).content
        )


def test_masked_key_columns_are_masked_before_they_are_written_down(server):
    assert give(server, {"key": {"carrier": "AA", "_request_id": "r"}, "label": 1}).status == 202
    (frame,) = kept(server.repository.state_dir / SPOOL)
    masked = ColumnMask(server.repository.state_dir / "mask.key").hash_values(
        {"carrier": "AA"}, frozenset({"carrier"})
    )
    assert frame.entries == (Feedback(None, None, masked | {"_request_id": "r"}, 1),)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the feedback has no label; null withdraws an earlier label"),
        ({"label": 1}, "the feedback needs either a prediction_id or a key"),
        (
            {"label": 1, "prediction_id": "p", "key": {"hour": 1}},
            "needs either a prediction_id or a key",
        ),
        (
            {"label": [1], "prediction_id": "p"},
            "label is [1]; a text, a number, true, false or null is expected",
        ),
        (
            {"label": "x" * 1001, "prediction_id": "p"},
            "label has 1001 characters; at most 1000 are allowed",
        ),
        (
            {"label": 1, "prediction_id": ""},
            "prediction_id is ''; the X-Prediction-Id of an answer",
        ),
        (
            {"label": 1, "prediction_id": "p", "row": -1},
            "row is -1; a whole number from 0 is expected",
        ),
        (
            {"label": 1, "prediction_id": "p", "row": True},
            "row is true; a whole number from 0 is expected",
        ),
        (
            {"label": 1, "key": {"hour": 1}, "row": 0},
            "row requires a prediction_id; a key already selects its row",
        ),
        ({"label": 1, "key": {}}, "key is {}; an object of 1 to 16 columns is expected"),
        (
            {"label": 1, "key": {"hour": {}}},
            "key.hour is {}; a text, a number, true, false or null is expected",
        ),
        (
            {"label": 1, "key": {"hours": 1}},
            "key names 'hours', but no logged row of flights has this column; did you mean 'hour'?",
        ),
        (
            {"label": 1, "key": {"distance": 1}},
            "key names 'distance', but no logged row of flights has this column",
        ),
        (
            {"label": 1, "prediction": "p"},
            "prediction is not known; feedback has prediction_id, row, key, label",
        ),
        ({"feedback": {}}, "feedback is {}; a list of objects is expected"),
        ({"feedback": []}, "feedback has 0 entries; 1 to 10000 are expected"),
        ({"feedback": [{"label": 1, "prediction_id": "p"}] * 10_001}, "feedback has 10001 entries"),
        ({"feedback": [{"label": 1, "prediction_id": "p"}, 7]}, "feedback[1] is 7; a label with"),
        (
            {"feedback": [{"label": 1, "key": {f"c{place}": 1}} for place in range(17)]},
            "feedback has more than 16 different sets of key columns",
        ),
        ({"feedback": [], "label": 1}, "the document has 'label' next to 'feedback'"),
        ([], "the body is a JSON array; an object is expected"),
        (b'{"prediction_id": "p", "label": NaN}', "label is nan; null withdraws an earlier label"),
        (
            b'{"prediction_id": "p", "label": -Infinity}',
            "label is -inf; a finite number is expected",
        ),
        (
            b'{"key": {"hour": Infinity}, "label": 1}',
            "key.hour is inf; a finite number is expected",
        ),
        (b'{"key": {"hour": NaN, "carrier": "\\ud800"}, "label": 1}', "the body is not valid JSON"),
        (b'{"\\ud800": NaN}', "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"", "the body is empty"),
    ],
)
def test_invalid_feedback_is_refused_with_a_reason(server, body, message):
    response = give(server, body)
    assert response.status == 400
    assert message in orjson.loads(response.body)["message"]
    assert kept(server.repository.state_dir / SPOOL) == []


def test_numbers_that_are_none_and_huge_ones_are_kept_as_values_without_any_and_as_floats(server):
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


def test_another_content_type_and_an_unknown_endpoint_are_refused(server):
    assert give(server, b"a,b", content_type="text/csv").status == 415
    response = give(server, {"prediction_id": "p", "label": 1}, "/endpoints/flight/feedback")
    assert response.status == 404
    assert orjson.loads(response.body)["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_a_full_disk_answers_503_with_retry_after(server):
    with files_of_at_most(0):
        response = give(server, {"prediction_id": "p", "label": 1})
    assert response.status == 503
    assert response.headers["Retry-After"] == "30"
    assert "cannot be stored" in orjson.loads(response.body)["message"]
    assert give(server, {"prediction_id": "p", "label": 1}).status == 202
    assert len(kept(server.repository.state_dir / SPOOL)) == 1


def test_a_spool_that_cannot_be_made_is_not_named_to_the_caller(server):
    (server.repository.state_dir / SPOOL).write_text("in its place")
    response = give(server, {"prediction_id": "p", "label": 1})
    assert response.status == 503
    assert mentions(orjson.loads(response.body)["message"], "cannot be stored", "Not a directory")
