"""Entries of an MLmodel file that describe tensors."""

from typing import Any


def input_entry(
    name: str,
    dtype: str,
    shape: list[int],
    columns: list[str],
    **more: Any,
) -> dict[str, Any]:
    """Return an input of the onnxserve flavor that columns of a table fill."""
    return {"name": name, "dtype": dtype, "shape": shape, "columns": columns, **more}


def output_entry(
    name: str,
    dtype: str,
    shape: list[int],
    role: str = "values",
) -> dict[str, Any]:
    """Return an output of the onnxserve flavor."""
    return {"name": name, "dtype": dtype, "shape": shape, "role": role}


def tensor_spec(dtype: str, shape: list[int], **more: str) -> dict[str, Any]:
    """Return a tensor of a signature."""
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **more}
