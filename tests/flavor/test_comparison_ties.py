from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor.comparison import changes_within_one_step


def test_row_on_an_edge_is_unstable_and_one_beside_it_is_not() -> None:
    table = pd.DataFrame({"a": [0.5, 0.6, 0.5], "b": [1.0, 1.0, -1.0], "text": ["x", "y", "z"]})

    def answers_otherwise(moved: Any, origin: Any) -> Any:
        return (moved.a > 0.5).to_numpy() != (table.a.to_numpy() > 0.5)[origin]

    assert changes_within_one_step(table, answers_otherwise).tolist() == [True, False, True]


def test_matrix_is_moved_column_by_column() -> None:
    matrix = {"": np.array([[0.5, 2.0], [0.7, 2.0]])}

    def answers_otherwise(moved: Any, origin: Any) -> Any:
        return (moved[""][:, 0] > 0.5) != (matrix[""][:, 0] > 0.5)[origin]

    assert changes_within_one_step(matrix, answers_otherwise).tolist() == [True, False]


def test_rows_without_fractions_are_never_unstable() -> None:
    table = pd.DataFrame({"n": [1, 2]})

    assert changes_within_one_step(table, lambda moved, origin: np.ones(len(origin), bool)).tolist() == [False, False]


def test_column_of_nullable_floats_is_moved_too() -> None:
    table = pd.DataFrame({"a": pd.array([0.5, 0.6, None], dtype="Float64")})

    def answers_otherwise(moved: Any, origin: Any) -> Any:
        assert moved.a.dtype == "Float64"
        return (moved.a > 0.5).fillna(False).to_numpy(bool) != (table.a > 0.5).fillna(False).to_numpy(bool)[origin]

    assert changes_within_one_step(table, answers_otherwise).tolist() == [True, False, False]


def test_wide_rows_are_moved_a_few_columns_at_a_time() -> None:
    sizes = []

    def answers_otherwise(moved: Any, origin: Any) -> Any:
        sizes.append(len(origin))
        return moved[""][:, -1] > 1

    assert changes_within_one_step({"": np.ones((3, 500))}, answers_otherwise).all()
    assert sum(sizes) == 3 * 2 * 500
    assert max(sizes) <= 100
