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


def test_key_depends_on_version_and_feeds():
    x = np.arange(4.0)
    every_feeds: list[dict[str, Any]] = [
        {"x": x},
        {"y": x},
        {"x": x.astype("f4")},
        {"x": x.reshape(2, 2)},
        {"x": x + 1},
        {"x": texts("ab", "c")},
        {"x": texts("a", "bc")},
        {"x": texts('a", "bc')},
        {"x": x[:2], "y": x[2:]},
        {"x": x[:3], "y": x[3:]},
    ]
    keys = {request_digest(VERSION, feeds) for feeds in every_feeds}
    keys.add(request_digest(("m", "2", "", ""), {"x": x}))
    assert len(keys) == len(every_feeds) + 1


@pytest.mark.parametrize(
    ("feeds", "same"),
    [
        ({"a": np.ones(2), "b": np.zeros(2)}, {"b": np.zeros(2), "a": np.ones(2)}),
        ({"x": np.arange(8.0)[::2]}, {"x": np.arange(4.0) * 2}),
    ],
    ids=["order", "strides"],
)
def test_key_ignores_order_and_layout(feeds, same):
    assert request_digest(VERSION, feeds) == request_digest(VERSION, same)


def test_feeds_without_bytes_have_no_key():
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


def test_answer_expires():
    clock = Clock(0.0)
    cache = MemoryCache(100_000, 60, clock)
    cache.put(b"k", {"y": np.zeros(1)})
    clock.now = 59.9
    assert cache.get(b"k")
    clock.now = 60.0
    assert cache.get(b"k") is None
    assert cache._bytes == 0


def test_least_recently_used_is_evicted_first():
    cache = MemoryCache(10_000, 60)
    for key in (b"0", b"1", b"2"):
        cache.put(key, {"y": np.zeros(250)})
    assert cache.get(b"0")
    for _ in range(10):  # Several requests computed it at the same time.
        cache.put(b"3", {"y": np.zeros(250)})

    assert [bool(cache.get(key)) for key in (b"0", b"1", b"2", b"3")] == [True, False, True, True]
    for number in range(1000):
        cache.put(str(number).encode(), {"y": texts("a" * 100)})
        assert cache._bytes <= 10_000


@pytest.mark.parametrize("array", [np.zeros(5000), texts({"a": 1})], ids=["large", "maps"])
def test_large_answers_and_maps_are_not_cached(array):
    cache = MemoryCache(10_000, 60)
    cache.put(b"k", {"y": array})
    assert cache.get(b"k") is None


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
def test_numbers_round_trip(outputs):
    again = decode_outputs(encode_outputs(outputs) or b"")
    assert again is not None
    assert list(again) == list(outputs)
    for name, array in outputs.items():
        np.testing.assert_array_equal(again[name], array, strict=True)


def test_texts_round_trip():
    label = texts("ä", "").reshape(2, 1)
    again = decode_outputs(encode_outputs({"label": label}) or b"")
    assert again is not None
    np.testing.assert_array_equal(again["label"], label, strict=True)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_answer(content):
    assert not decode_outputs(content)


@pytest.mark.parametrize(
    "layout",
    [
        b'[["y","O",[1],8]]',
        b'[["y","f8",[9],8]]',
        b'[["y","S8",[1],8]]',
        b'{"a":1}',
        b"[[1]]",
        b"[1]",
    ],
)
def test_hostile_layout_is_a_miss(layout):
    assert decode_outputs(len(layout).to_bytes(4, "little") + layout + bytes(8)) is None


def test_cache_of_no_bytes_is_none():
    assert open_cache(0, 60, "redis://127.0.0.1:1/0") is None
    assert isinstance(open_cache(1, 60, ""), MemoryCache)


@pytest.mark.redis
def test_workers_share_answers_over_redis(redis_url):
    cache, other = (RedisCache(redis_url, 10_000, 60, print) for _ in range(2))
    assert other.get(b"shared") is None
    cache.put(b"shared", {"y": np.arange(3.0), "label": texts("a", "b", "c")})
    cache.put(b"large", {"y": np.zeros(5000)})

    answer = other.get(b"shared") or {}
    assert {name: array.tolist() for name, array in answer.items()} == {
        "y": [0.0, 1.0, 2.0],
        "label": ["a", "b", "c"],
    }
    assert 0 < cache._client.ttl(b"onnxserve:answer:shared") <= 60
    assert other.get(b"large") is None


@pytest.mark.redis
def test_foreign_value_in_redis_is_ignored(redis_url):
    cache = RedisCache(redis_url, 10_000, 60, print)
    cache._client.set(b"onnxserve:answer:foreign", b"\x80\x04cos\nsystem\n")
    assert cache.get(b"foreign") is None


def test_cache_misses_without_redis(caplog, monkeypatch):
    # Otherwise the thread that pings Redis would log in later tests that Redis is down.
    monkeypatch.setattr("redis.Redis.ping", lambda client: True)
    cache = RedisCache(f"redis://:secret@127.0.0.1:{free_port()}/0", 10_000, 60, lambda: None)
    with caplog.at_level(logging.ERROR):
        for _ in range(20):
            cache.put(b"k", {"y": np.zeros(1)})
            assert cache.get(b"k") is None

    # The second failed request logs the same, and the log drops repeats.
    (line,) = set(caplog.messages)
    assert "Redis does not answer (Connection refused)" in line
