"""Feedback is decoded from the spool as it was written."""

import pytest

from mlflow_deploy_plugin.serve.spool.codec import (
    Feedback,
    FeedbackFrame,
    decode_feedback,
    encode_feedback,
)

ENTRIES = (
    Feedback("p1", None, None, True),
    Feedback("p1", 3, None, None),
    Feedback(None, None, {"flight": 7, "carrier": "UA"}, 0.5),
)


def test_feedback_comes_back_as_it_was_written():
    payload = encode_feedback("e", 1_000_000, ENTRIES)
    assert decode_feedback(payload, 40) == FeedbackFrame("e", 1_000_000, ENTRIES, 40)


@pytest.mark.parametrize("payload", [b"", b"[", b"7", b"[1,2]", b'["e",1,[[1]]]'])
def test_malformed_feedback_is_refused(payload):
    with pytest.raises((ValueError, TypeError)):
        decode_feedback(payload, 0)
