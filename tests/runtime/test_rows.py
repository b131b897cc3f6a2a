import numpy as np
import pytest

from mlflow_deploy_plugin.runtime.rows import in_types


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        (np.array([1.0, 895.0], "float32"), "int64", "int64"),  # as the graph takes whole numbers
        (np.array([1, 0], "int32"), "int64", "int64"),
        (np.array([1, 0], "int64"), "int32", "int32"),  # as a CSV file has them
        (np.array([1.0, 0.0], "float32"), "bool", "bool"),
        (np.array([1, 0], "int64"), "bool", "bool"),
        (np.array([0.5, np.nan], "float32"), "float64", "float64"),
        (np.array([0.5, np.inf], "float64"), "float32", "float32"),
        (np.array([1.5, 2.0], "float32"), "int64", "float32"),  # whatever would be lost stays, to be refused by name
        (np.array([1.0, np.nan], "float32"), "int64", "float32"),
        (np.array([2, 0], "int64"), "bool", "int64"),
        (np.array([2**40, 0], "int64"), "int32", "int64"),
        (np.array([2.0**63, 0.0]), "int64", "float64"),
        (np.array([1e300, 0.0]), "float32", "float64"),
        (np.array([1, 2], "int64"), "float64", "int64"),  # whole numbers stay whole where any number goes
        (np.array([True, False]), "int64", "bool"),
        (np.array(["1", None], dtype=object), "int64", "object"),
        (np.array([1.0, 2.0]), "str", "float64"),
    ],
)
def test_numbers_come_in_the_signatures_type_where_none_is_lost(values, wanted, found):
    typed = in_types({"x": wanted, "gone": "int64"}, {"x": values, "other": values})
    assert str(typed["x"].dtype) == found
    assert np.array_equal(typed["x"], values.astype(found), equal_nan=found.startswith("float"))
    assert typed["other"] is values
