"""The cache returns the same arrays, for a limited time, within its bounds, and never
from foreign bytes.
"""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlflow_deploy_plugin.serve.inference.response_cache import (
    MemoryCache,
    RedisCache,
    decode_outputs,
    encode_outputs,
    open_cache,
    request_digest,
)
from tests.support.clocks import Clock
from tests.support.waiting import free_port

VERSION = ("m", "1", "", "")


def texts(*values):
    return np.array(values, dtype=object)


def test_the_key_tells_everything_that_the_answer_depends_on():
    x = np.arange(4.0)
    questions: list[Any] = [
        (VERSION, {"x": x}),
        (("m", "2", "", ""), {"x": x}),
        (VERSION, {"y": x}),
        (VERSION, {"x": x.astype("f4")}),
        (VERSION, {"x": x.reshape(2, 2)}),
        (VERSION, {"x": x + 1}),
        (VERSION, {"x": texts("ab", "c")}),
        (VERSION, {"x": texts("a", "bc")}),
        (VERSION, {"x": texts('a", "bc')}),
        (VERSION, {"x": x[:2], "y": x[2:]}),
        (VERSION, {"x": x[:3], "y": x[3:]}),
    ]
    keys = [request_digest(*question) for question in questions]

    assert len(set(keys)) == len(questions)
    assert request_digest(VERSION, {"a": x, "b": x + 1}) == request_digest(
        VERSION, {"b": x + 1, "a": x}
    )
    assert request_digest(VERSION, {"x": np.arange(8.0)[::2]}) == request_digest(
        VERSION, {"x": x * 2}
    )


def test_a_question_without_bytes_has_no_key():
    assert request_digest(VERSION, {"x": texts("\ud800")}) is None
    assert request_digest(VERSION, {"x": np.array([{"a": 1}], dtype=object)}) is None


def test_cached_responses_are_read_only_copies():
    cache = MemoryCache(100_000, 60)
    batch = np.arange(10.0)
    cache.put(b"k", {"y": batch[2:4]})
    batch[:] = -1

    arrays = cache.get(b"k")
    assert arrays is not None
    assert arrays["y"].tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="read-only"):
        arrays["y"][0] = 7
    arrays.clear()
    assert cache.get(b"k")


def test_an_answer_is_kept_for_its_time():
    clock = Clock(0.0)
    cache = MemoryCache(100_000, 60, clock)
    cache.put(b"k", {"y": np.zeros(1)})
    clock.now = 59.9
    assert cache.get(b"k")
    clock.now = 60.0
    assert cache.get(b"k") is None
    assert cache._bytes == 0


def test_the_least_recently_used_goes_first_and_the_bound_holds():
    cache = MemoryCache(10_000, 60)
    for number in range(3):
        cache.put(str(number).encode(), {"y": np.zeros(250)})
    assert cache.get(b"0")
    cache.put(b"3", {"y": np.zeros(250)})

    assert [bool(cache.get(key)) for key in (b"0", b"1", b"2", b"3")] == [True, False, True, True]
    for _ in range(9):  # Several requests computed it at the same time.
        cache.put(b"3", {"y": np.zeros(250)})
    assert cache.get(b"0")
    cache.put(b"large", {"y": np.zeros(5000)})
    assert cache.get(b"large") is None
    cache.put(b"maps", {"y": np.array([{"a": 1}], dtype=object)})
    assert cache.get(b"maps") is None
    for number in range(1000):
        cache.put(str(number).encode(), {"y": texts("a" * 100)})
        assert cache._bytes <= 10_000


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        npst.arrays(
            st.sampled_from(["f4", "f8", "f2", "i1", "i8", "u2", "?"]),
            npst.array_shapes(min_dims=0, min_side=0),
        ),
        max_size=3,
    )
)
def test_numbers_come_back_as_they_were_packed(outputs):
    content = encode_outputs(outputs)
    assert content is not None
    again = decode_outputs(content)
    assert again is not None
    assert list(again) == list(outputs)
    for name, array in outputs.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_texts_come_back_as_they_were_packed():
    again = decode_outputs(encode_outputs({"label": texts("ä", "").reshape(2, 1)}) or b"")
    assert again is not None
    assert again["label"].dtype == object
    assert again["label"].tolist() == [["ä"], [""]]


@given(st.binary(max_size=60))
def test_foreign_bytes_are_no_answer(content):
    assert not decode_outputs(content)


def test_bytes_that_ask_for_objects_or_lie_about_a_shape_are_no_answer():
    for layout in (
        '[["y","O",[1],8]]',
        '[["y","f8",[9],8]]',
        '[["y","S8",[1],8]]',
        '{"a":1}',
        "[[1]]",
        "[1]",
    ):
        text = layout.encode()
        assert decode_outputs(len(text).to_bytes(4, "little") + text + bytes(8)) is None


def test_no_bytes_no_cache():
    assert open_cache(0, 60, "redis://127.0.0.1:1/0") is None
    assert isinstance(open_cache(1, 60, ""), MemoryCache)


@pytest.mark.redis
def test_workers_share_answers_over_redis(redis_url):
    cache, other = (RedisCache(redis_url, 10_000, 60, print) for _ in range(2))
    assert other.get(b"shared") is None
    cache.put(b"shared", {"y": np.arange(3.0), "label": texts("a", "b", "c")})

    answer = other.get(b"shared")
    assert answer is not None
    assert answer["y"].tolist() == [0.0, 1.0, 2.0]
    assert answer["label"].tolist() == ["a", "b", "c"]
    assert 0 < cache._client.ttl(b"onnxserve:answer:shared") <= 60
    cache.put(b"large", {"y": np.zeros(5000)})
    assert other.get(b"large") is None


@pytest.mark.redis
def test_a_foreign_value_in_redis_is_ignored(redis_url):
    cache = RedisCache(redis_url, 10_000, 60, print)
    cache._client.set(b"onnxserve:answer:foreign", b"\x80\x04cos\nsystem\n")
    assert cache.get(b"foreign") is None


def test_without_redis_the_cache_misses_and_raises_no_error(caplog, monkeypatch):
    # Otherwise the thread that pings Redis would log in later tests that Redis is down.
    monkeypatch.setattr("redis.Redis.ping", lambda client: True)
    cache = RedisCache(f"redis://:secret@127.0.0.1:{free_port()}/0", 10_000, 60, lambda: None)
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            cache.put(b"k", {"y": np.zeros(1)})
            assert cache.get(b"k") is None

    # The second failed request logs the same, and the log drops repeats.
    assert set(caplog.messages) == {
        "Redis does not answer (Connection refused): responses are computed and not cached"
    }
