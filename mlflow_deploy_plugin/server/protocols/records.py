"""Several outputs row by row, for the forms that know only rows."""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.errors import SchemaMismatch
from mlflow_deploy_plugin.runtime import Array


def check_rows(outputs: Mapping[str, Array]) -> None:
    """Whether each output has one value, or array of values, for each of the same rows.

    Raises:
        SchemaMismatch: one has not.
    """
    lengths = {len(array) if getattr(array, "ndim", 0) else -1 for array in outputs.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise SchemaMismatch("the outputs of this model are not one value for each row; ask for JSON at /invocations")


def by_row(outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    """One mapping a row, from output to its value.

    Raises:
        SchemaMismatch: see `check_rows`.
    """
    check_rows(outputs)
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
