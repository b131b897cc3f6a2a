"""The faster tree operator of the distribution onnxserve-trees (`projects/trees/`),
which is optional.

Its library replaces ONNX Runtime's operator in a session, so the files of a model are
unchanged.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnxruntime as ort

REPLACED_OPERATOR = "TreeEnsembleRegressor"
MANY_ROWS_CONSTANT = "many_rows"
"""The number of rows from which on a graph sorts rows (`row_order.py`) or descends
trees by levels (`levels.py`) for ONNX Runtime's operator, but not for the faster one.
"""
PREFIXES = ("onnxserve_", "order_of_rows_onnxserve_")
_MOST_FORESTS = 64
_CONFIG_ENTRY = "onnxserve.tree_operator"


def add_tree_operator(options: "ort.SessionOptions") -> None:
    """Make a session with `options` compute trees with the faster operator.

    Raises:
        ImportError: the distribution is not installed (ModuleNotFoundError), or is
            incomplete.
        Exception: an error of ONNX Runtime: the library does not fit this machine.
    """
    import onnxserve_trees  # optional

    options.register_custom_ops_library(onnxserve_trees.LIBRARY)
    # ONNX Runtime ignores the names that a graph does not have.
    for prefix in PREFIXES:
        for number in range(_MOST_FORESTS):
            options.add_initializer(f"{prefix}{MANY_ROWS_CONSTANT}{number or ''}", _never())
    options.add_session_config_entry(_CONFIG_ENTRY, "1")


def has_tree_operator(session: "ort.InferenceSession") -> bool:
    """Return True if `add_tree_operator` changed the options of the session."""
    try:
        session.get_session_options().get_session_config_entry(_CONFIG_ENTRY)
    except RuntimeError:  # There is no entry.
        return False
    return True


@cache
def _never() -> "ort.OrtValue":
    """Return a number of rows that no run has. Sessions refer to it, so it is kept."""
    import onnxruntime  # heavy, and provided by several distributions

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.array([2**62]))
