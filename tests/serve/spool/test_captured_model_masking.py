"""Equal values have equal hashes in a column and in a label's key, even if their types
differ.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask


@pytest.mark.parametrize(
    ("column", "key"),
    [
        (np.array([0.1], np.float32), 0.1),
        (np.array([0.1]), "0.1"),
        (np.array([7.0], np.float32), 7),
        (np.array([7]), "7"),
        (np.array([True]), True),
        (np.array([True]), "True"),  # the text in a CSV file
        (np.array([False]), 0),
        (np.array([0.0], np.float32), False),  # a boolean in rows of earlier builds
        (np.array(["é"], object), "é"),
    ],
)
def test_a_column_and_a_key_of_the_same_value_are_masked_alike(tmp_path, column, key):
    mask = ColumnMask(tmp_path / "mask.key")
    assert mask.hash_values({"a": key, "b": key}, frozenset("a")) == {
        "a": mask.hash_column(column)[0],
        "b": key,
    }


def test_missing_values_stay_missing_and_lists_are_masked_by_the_row(tmp_path):
    mask = ColumnMask(tmp_path / "mask.key")
    assert mask.hash_column(np.array([np.nan], np.float32)) == [None]
    first, second, again = mask.hash_column(
        np.array([[0.1, 2.0], [0.1, 3.0], [0.1, 2.0]], np.float32)
    )
    assert first == again != second


def test_workers_that_make_the_key_at_once_mask_alike(tmp_path):
    workers = 8
    at_once = Barrier(workers)

    def masked(_):
        mask = ColumnMask(tmp_path / "mask.key")
        at_once.wait()
        return mask.hash_values({"a": 1}, frozenset("a"))["a"]

    with ThreadPoolExecutor(workers) as pool:
        assert len(set(pool.map(masked, range(workers)))) == 1
