"""Feeds are joined, cut and repeated together with the values that were sent."""

import numpy as np

from mlflow_deploy_plugin.runtime import concatenate_feeds, repeat_row, row_count, sent_arrays, slice_feeds
from mlflow_deploy_plugin.runtime.feeds import NarrowedFeeds, narrowed_feeds


def narrowed(*values: float) -> NarrowedFeeds:
    exact = np.array(values)
    return narrowed_feeds({"x": exact.astype(np.float32)}, {"@double": exact})


def test_what_was_sent_is_joined_and_cut_with_the_feeds() -> None:
    joined = concatenate_feeds([narrowed(0.1, 0.2), narrowed(0.3)])
    assert joined["x"].dtype == np.float32
    assert sent_arrays(joined)["@double"].tolist() == [0.1, 0.2, 0.3]
    part = slice_feeds(joined, slice(1, 3))
    assert (len(part["x"]), sent_arrays(part)["@double"].tolist()) == (2, [0.2, 0.3])


def test_feeds_that_lose_nothing_are_what_was_sent() -> None:
    plain = {"x": np.array([1.0, 2.0])}
    assert sent_arrays(plain) is plain
    assert type(concatenate_feeds([plain, narrowed(3.0)])) is dict
    assert type(slice_feeds(plain, slice(1))) is dict


def test_one_row_is_repeated() -> None:
    feeds = {"x": np.array([[1, 2], [3, 4]]), "s": np.array(["a", "b"], dtype=object)}
    assert {name: array.tolist() for name, array in repeat_row(feeds, 1, 2).items()} == {
        "x": [[3, 4], [3, 4]],
        "s": ["b", "b"],
    }
    assert np.shares_memory(repeat_row(feeds, 1)["x"], feeds["x"])


def test_the_longest_array_says_how_many_rows_there_are() -> None:
    assert row_count({"x": np.zeros((3, 2)), "one": np.zeros(1), "scalar": np.array(1.0)}) == 3
    assert row_count({"scalar": np.array(1.0)}) == row_count({}) == 0
