"""Reading in batches and reading single requests return the same values."""

import io
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import Feedback, RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.spool_reader import (
    read_batches,
    read_last_batches,
)
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.spool import read_segment

HOUR = 3_600_000_000
SCHEMA = Schema(
    (Column("s", "string"), Column("d", "double")),
    (),
    (Input("s", "str", (-1, 1), ("s",)), Input("d", "float32", (-1, 1), ("d",))),
)
MODELS = [CapturedModel("m", str(version), SCHEMA, ("y",)) for version in range(2)]

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS),
            "endpoint": st.sampled_from(["e", "fé"]),
            "rows": st.integers(0, 3),
            "id": st.text(max_size=5).filter(lambda text: text.isprintable()),
            "hour": st.integers(-2, 2),
            "width": st.integers(0, 2),
            "words": st.lists(st.sampled_from(["", "ü", 'a"b', None]), min_size=9, max_size=9),
            "has_text": st.booleans(),
            "is_shadow": st.booleans(),
        }
    ),
    max_size=12,
)


def write(writer, number, request):
    rows = request["rows"]
    feeds = {"d": np.arange(rows, dtype=np.float32).reshape(rows, 1) + number}
    if request["has_text"]:
        # The first value determines the type.
        words = np.array(["word", *request["words"]][: rows * 2], dtype=object)
        feeds["s"] = words.reshape(rows, 2)
    outputs = {
        "y": np.full(rows, number, np.int64),
        "p": np.full((rows, request["width"], 2), number, np.float64),
    }
    moment = HOUR * request["hour"] + number
    record = RequestRecord(
        request["endpoint"],
        "v",
        request["id"],
        f"p{number}",
        moment,
        moment + 1,
        number,
        200 + number,
        request.get("is_shadow", False),
    )
    assert writer.write(record, request["model"], feeds, outputs, 100)[-1]


def strings(texts):
    content = texts.content.tobytes()
    bounds = texts.bounds.tolist()
    return [content[begin:stop].decode() for begin, stop in pairwise(bounds)]


def plain(arrays):
    return {name: (array.shape, array.dtype, array.tolist()) for name, array in arrays.items()}


def named(model):
    return model.model, model.version, model.schema, model.prediction


def one_by_one(segment, start):
    requests, end = read_segment(segment, start)
    return [
        (
            named(request.model),
            request.offset,
            tuple(request.record),
            plain(request.feeds),
            plain(request.outputs),
        )
        for request in requests
    ], end


def by_the_batch(segment, start):
    captured = read_batches(segment, start)
    requests = []
    for batch in captured.batches:
        ids = zip(strings(batch.request_ids), strings(batch.prediction_ids), strict=True)
        for place, (request_id, prediction_id) in enumerate(ids):
            times = int(batch.event_times[place]), int(batch.received_times[place])
            outcome = int(batch.latencies[place]), int(batch.statuses[place]), batch.is_shadow
            assert times[0] // HOUR == batch.hour
            rows = slice(place * batch.rows, (place + 1) * batch.rows)
            requests.append(
                (
                    named(batch.model),
                    int(batch.offsets[place]),
                    (batch.endpoint, batch.variant, request_id, prediction_id, *times, *outcome),
                    plain({name: array[rows] for name, array in batch.feeds.items()}),
                    plain({name: array[rows] for name, array in batch.outputs.items()}),
                )
            )
    return sorted(requests, key=lambda request: request[1]), captured.end


@settings(max_examples=30)
@given(REQUESTS, st.integers(0, 12))
def test_batches_match_single_requests(tmp_path_factory, requests, shipped):
    spool = tmp_path_factory.mktemp("spool")
    writer = CaptureWriter(spool)
    start = 0
    for number, request in enumerate(requests):
        write(writer, number, request)
        start = segments(spool)[0].stat().st_size if number < shipped else start
    writer.close()
    for segment in segments(spool):
        assert by_the_batch(segment, 0) == one_by_one(segment, 0)
        assert by_the_batch(segment, start) == one_by_one(segment, start)


REQUEST = {
    "model": MODELS[0],
    "endpoint": "e",
    "rows": 1,
    "hour": 0,
    "width": 1,
    "words": ["a"],
    "has_text": True,
}


def test_damaged_frame_affects_no_other(tmp_path):
    writer = CaptureWriter(tmp_path)
    for number in range(20):
        write(writer, number, {**REQUEST, "id": "r"})
    writer.write_feedback("e", 1, [Feedback("p", 0, None, "OXS4")])
    (segment,) = segments(tmp_path)
    offsets = [request.offset for request in read_segment(segment)[0]]
    content = bytearray(segment.read_bytes())
    content[offsets[7] + 30] ^= 1
    segment.write_bytes(content)
    captured = read_batches(segment)
    (batch,) = captured.batches
    assert batch.offsets.tolist() == offsets[:7] + offsets[8:]
    assert captured.lost_bytes == offsets[8] - offsets[7]
    assert len(captured.feedback) == 1
    assert captured.end == len(content)


def test_similar_requests_are_one_batch(tmp_path):
    writer = CaptureWriter(tmp_path)
    for number in range(100):
        request = {**REQUEST, "id": "x" * (number % 3), "endpoint": "ef"[number % 2]}
        write(writer, number, request)
    batches = read_batches(segments(tmp_path)[0]).batches
    assert [(batch.endpoint, len(batch.offsets)) for batch in batches] == [("e", 50), ("f", 50)]


class _TakenBackMeanwhile(io.BytesIO):
    """Read a segment while its worker truncates half a frame and writes another frame
    at the same offset.
    """

    is_first = True

    def read(self, size=-1):
        content = super().read(size)
        if size == -1 and self.is_first:
            self.is_first = False
            middle = content.index(b"second")
            return content[:middle] + b"half a" + content[middle + 6 :]
        return content


def test_frame_truncated_meanwhile_hides_none(tmp_path, monkeypatch):
    writer = CaptureWriter(tmp_path)
    for number, name in enumerate(("first_", "second", "third_")):
        write(writer, number, {**REQUEST, "id": name})
    (segment,) = segments(tmp_path)
    content = segment.read_bytes()
    monkeypatch.setattr(Path, "open", lambda path, mode: _TakenBackMeanwhile(content))
    captured = read_batches(segment)
    assert [len(batch.offsets) for batch in captured.batches] == [3]
    assert captured.lost_bytes == 0


def prediction_ids(batches):
    return list(chain.from_iterable(strings(batch.prediction_ids) for batch in batches))


def test_last_requests_begin_at_a_frame(tmp_path):
    """The values look like a frame."""
    writer = CaptureWriter(tmp_path)
    write(writer, 0, {**REQUEST, "id": "r"})
    (segment,) = segments(tmp_path)
    frames = segment.read_bytes()
    sent = np.frombuffer(frames + bytes(-len(frames) % 4), np.float32).reshape(1, -1)
    for number in (1, 2):
        record = RequestRecord("e", "v", "r", f"p{number}", 1, 1)
        writer.write(record, MODELS[0], {"d": sent}, {}, 100)

    def last(most_bytes):
        return prediction_ids(read_last_batches(segment, most_bytes))

    size = segment.stat().st_size
    assert prediction_ids(read_batches(segment, size - sent.nbytes).batches) == ["p0"]
    assert last(size) == ["p0", "p1", "p2"]
    for most_bytes in (0, sent.nbytes // 2, sent.nbytes):
        assert last(most_bytes) == ["p2"]
    with segment.open("ab") as file:
        file.write(frames[:20])  # The worker has died while it wrote.
    assert last(sent.nbytes + 150) == ["p2"]
