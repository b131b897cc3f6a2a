"""The inputs of a model as the fields of a form."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlflow_deploy_plugin.runtime import COLUMN_TYPES, Schema, Tensor
from mlflow_deploy_plugin.server.http.openapi.examples import Example
from mlflow_deploy_plugin.server.protocols.content import dump_json

Kind = Literal["number", "boolean", "string", "tensor"]

_LEAST_SIDE, _MOST_SIDE = 8, 4096
"""Pixels; shorter sides are hardly those of a picture, and longer ones too much for a browser."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The tensor that a picture becomes.

    Attributes:
        layout: NCHW, NHWC or NHW; the batch is one picture.
        channels: 1 (grey) or 3 (red, green, blue).
        is_scaled: True if 0–255 becomes 0–1, as for floating point.
    """

    layout: Literal["NCHW", "NHWC", "NHW"]
    channels: int
    height: int
    width: int
    is_scaled: bool


@dataclass(frozen=True, slots=True)
class FormField:
    """One input.

    Attributes:
        id: of its element on the page.
        quoted_name: the name as the server's errors quote it.
        meaning: type, or dtype and shape, as text.
        is_nullable: True if an empty field is sent as null.
        value: the initial text of the field.
    """

    id: str
    name: str
    quoted_name: str
    kind: Kind
    meaning: str
    is_nullable: bool
    is_required: bool
    value: str
    picture: ImageInput | None = None


def form_fields(schema: Schema, example: Example) -> list[FormField]:
    """Return the fields of a form, in the signature's order, filled with the example's first row."""
    if schema.columns:
        return _column_fields(schema, example)
    return [_tensor_field(position, tensor, schema, example) for position, tensor in enumerate(schema.tensors)]


def image_input(tensor: Tensor) -> ImageInput | None:
    """Return the image input of a tensor, or None if it is no batch of pictures."""
    kind = np.dtype(tensor.dtype).kind if tensor.dtype != "str" else ""
    if kind != "f" and tensor.dtype != "uint8":
        return None
    match tensor.shape:
        case (-1 | 1, (1 | 3) as channels, height, width) if _are_sides(height, width):
            return ImageInput("NCHW", channels, height, width, kind == "f")
        case (-1 | 1, height, width, (1 | 3) as channels) if _are_sides(height, width):
            return ImageInput("NHWC", channels, height, width, kind == "f")
        case (-1 | 1, height, width) if _are_sides(height, width):
            return ImageInput("NHW", 1, height, width, kind == "f")
    return None


def _are_sides(height: int, width: int) -> bool:
    return _LEAST_SIDE <= height <= _MOST_SIDE and _LEAST_SIDE <= width <= _MOST_SIDE


def _column_fields(schema: Schema, example: Example) -> list[FormField]:
    missing = {name: entry.missing for entry in schema.inputs for name in entry.columns}
    row = example.record() if example.values else {}
    fields = []
    for position, column in enumerate(schema.columns):
        dtype = COLUMN_TYPES.get(column.type, "str")
        kind: Kind = "string" if dtype == "str" else "boolean" if dtype == "bool" else "number"
        is_nullable = dtype.startswith("float") or (dtype == "str" and missing.get(column.name) is not None)
        fields.append(
            FormField(
                f"field-{position}",
                column.name,
                repr(column.name),
                kind,
                column.type,
                is_nullable,
                column.required,
                _text(row.get(column.name)),
            )
        )
    return fields


def _tensor_field(position: int, tensor: Tensor, schema: Schema, example: Example) -> FormField:
    name = tensor.name or schema.inputs[0].name
    sizes = " × ".join("any" if size == -1 else str(size) for size in tensor.shape)
    # by the signature's name, or the graph's where the only tensor has none
    values = example.values.get(tensor.name, example.values.get(name))
    is_row = schema.has_rows and tensor.shape[:1] in ((-1,), (1,))
    shown = "" if values is None else dump_json(values[:1] if is_row else values).decode()
    return FormField(
        f"field-{position}",
        name,
        repr(tensor.name),
        "tensor",
        f"{'string' if tensor.dtype == 'str' else tensor.dtype}, {sizes}",
        False,
        True,
        shown,
        image_input(tensor),
    )


def _text(value: Any) -> str:
    """Return a value as it is typed into a form; null is an empty field."""
    if value is None or value != value:  # NaN stands for a missing number
        return ""
    return value if isinstance(value, str) else dump_json(value).decode()
