"""JSON Schemas (draft 2020-12, as in OpenAPI 3.1) of a model's requests and responses,
generated from its signature.

The schemas accept and reject the same bodies as the server, as far as JSON Schema can
express it. A part with a title becomes a component of the document, so each title must
have the same content everywhere in a model.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES, PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.runtime.values import shape_text

JsonSchema = dict[str, Any]

STRING: JsonSchema = {"type": "string"}
ARRAY_OR_OBJECT: JsonSchema = {"type": ["array", "object"], "items": {}}
ANY_OBJECT: JsonSchema = {"type": ["object", "null"], "additionalProperties": True}
SIZE: JsonSchema = {"type": "integer", "format": "int64"}
BYTES: JsonSchema = {"type": "string", "format": "binary"}


def object_schema(
    required: Mapping[str, JsonSchema],
    optional: Mapping[str, JsonSchema] | None = None,
    **more: object,
) -> JsonSchema:
    """Return the schema of an object with these properties; `more` are other keywords
    of JSON Schema.
    """
    names = {"required": list(required)} if required else {}
    return {
        "type": "object",
        **names,
        "properties": {**required, **(optional or {})},
        **more,
    }


def array_schema(items: JsonSchema | None = None, **more: object) -> JsonSchema:
    """Return the schema of an array; `items` is always set, because client generators
    need it.
    """
    return {"type": "array", "items": items or {}, **more}


@cache
def dtype_schema(dtype: str, is_nullable: bool = False) -> JsonSchema:
    """Return the schema of a value of a numpy dtype (`str`: strings). A float may be
    null, which means NaN.

    The format is the width of the number. Without it, generated clients in Go and Java
    use 32 bits.
    """
    if dtype == "str":
        return {"type": ["string", "null"]} if is_nullable else {"type": "string"}
    kind = np.dtype(dtype).kind
    if kind == "f":
        width = "double" if dtype == "float64" else "float"
        return {"type": ["number", "null"], "format": width}
    if kind in "iu":
        limits = np.iinfo(dtype)
        integer: JsonSchema = {"type": "integer"}
        if dtype != "uint64":
            integer["format"] = "int32" if limits.max < 2**31 else "int64"
        return {
            **integer,
            "minimum": int(limits.min),
            "maximum": int(limits.max),
        }
    return {"type": "boolean"} if kind == "b" else {}


def column_schemas(schema: Schema) -> dict[str, JsonSchema]:
    schemas = {}
    for column in schema.columns:
        is_nullable = schema.missing_texts.get(column.name) is not None
        value = dtype_schema(COLUMN_TYPES[column.type], is_nullable)
        schemas[column.name] = {**value, "description": column.type}
    return schemas


def nested(item: JsonSchema, rank: int) -> JsonSchema:
    """Return the schema of nested lists of `rank` levels. An empty outer list has no
    inner sizes, and is invalid.
    """
    for _ in range(rank - 1):
        item = array_schema(item)
    if rank > 1:
        return array_schema(item, minItems=1)
    return array_schema(item) if rank else item


def tensor_schema(tensor: Tensor) -> JsonSchema:
    values = nested(dtype_schema(tensor.dtype), len(tensor.shape))
    return {
        **values,
        "description": f"{tensor.dtype}, shape {shape_text(tensor.shape)}, as nested lists",
    }


def record_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a row as an object. Some rows may omit a nullable column,
    which is then null.
    """
    if not schema.columns:
        return {
            "type": "object",
            "minProperties": 1,
            "description": "one row: tensor names → values",
        }
    properties = column_schemas(schema)
    required = [
        column.name
        for column in schema.columns
        if column.required and "null" not in properties[column.name]["type"]
    ]
    record = object_schema({}, properties, minProperties=1)
    return {**record, "required": required, "title": "record"}


def invocations_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/invocations`; a pyfunc whose inputs are not arrays accepts
    any object.
    """
    if not schema.names:
        return ANY_OBJECT
    fields: dict[str, JsonSchema] = {
        "dataframe_split": split_schema(schema),
        "dataframe_records": array_schema(record_schema(schema), minItems=1),
        "instances": named_or_rows(schema),
        "inputs": named_or_rows(schema),
    }
    params = {**ANY_OBJECT, "description": "accepted, and ignored by an ONNX graph"}
    return {
        "oneOf": [
            object_schema({name: field}, {"params": params}, title=name)
            for name, field in fields.items()
        ],
    }


def predictions_schema(artifact: Artifact) -> JsonSchema:
    """Return the schema of all rows' predictions: nested lists for a single output, an
    object for several outputs.

    The predictions of a stock ONNX model or a pyfunc may have any form.
    """
    outputs = {output.name: output for output in artifact.outputs}
    names = artifact.prediction
    if (
        artifact.flavor in ("onnx", PYTHON_FUNCTION)
        or not outputs
        or any(name not in outputs for name in names)
    ):
        return ARRAY_OR_OBJECT
    class_types = {*map(type, artifact.classes)}
    by_name = {}
    for name in names:
        output = outputs[name]
        item: JsonSchema = {"type": "object"}
        if output.dtype != "map":
            item = dtype_schema(output.dtype, is_nullable=True)
        # Client generators support no enumeration of booleans or of several types.
        if output.role == "label" and class_types in ({str}, {int}):
            kind = "string" if class_types == {str} else "integer"
            item = {"type": kind, "enum": list(artifact.classes)}
        by_name[name] = {
            **nested(item, len(output.shape)),
            "description": f"{output.role}: {output.dtype}, shape {shape_text(output.shape)}",
        }
    if len(names) == 1:
        return by_name[names[0]]
    return object_schema(by_name, title="predictions")


def split_schema(schema: Schema) -> JsonSchema:
    """Return the schema of pandas' `to_dict(orient="split")`; without `columns`, rows
    are in the signature's order.
    """
    columns = ", ".join(schema.names[:50]) or "any"
    return object_schema(
        {"data": array_schema(minItems=1)},
        {
            "columns": {
                "type": ["array", "null"],
                "items": {"type": ["string", "integer"], "title": "column name"},
            },
            "index": {
                "type": ["array", "null"],
                "items": {},
                "description": "one label per row; ignored",
            },
        },
        additionalProperties=False,
        title="split",
        description=f"columns: {columns}",
    )


def named_or_rows(schema: Schema) -> JsonSchema:
    return {"anyOf": [named_schema(schema), rows_schema(schema)], "title": "values"}


def named_schema(schema: Schema) -> JsonSchema:
    """Return the schema of an object with the columns, or the tensors, by name. The
    name of a single tensor is free.
    """
    document = object_schema(
        {},
        {column.name: {} for column in schema.columns},
        title="values by name",
        minProperties=1,
    )
    if schema.columns:
        document["required"] = [column.name for column in schema.columns if column.required]
    elif len(schema.tensors) > 1:
        document["required"] = list(schema.names)
        document["properties"] = {tensor.name: tensor_schema(tensor) for tensor in schema.tensors}
    return document


def rows_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a list of rows: records, lists of values, or the only
    tensor.
    """
    if not schema.names:
        return array_schema(minItems=1)
    records = array_schema(record_schema(schema), minItems=1, title="records")
    unnamed = unnamed_schemas(schema)
    if unnamed:
        return {"anyOf": [records, *unnamed], "title": "values by row"}
    return records


def unnamed_schemas(schema: Schema) -> list[JsonSchema]:
    """Return the schemas of rows as lists, or of the only tensor; empty if several
    tensors must be named.
    """
    if schema.columns:
        return [array_schema(row_schema(schema), minItems=1, title="rows")]
    if len(schema.tensors) == 1:
        return [{**tensor_schema(schema.tensors[0]), "title": "the tensor"}]
    return []


def row_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a row without names, in the signature's order, or of a
    tensor without its batch.
    """
    if schema.columns:
        values = list(column_schemas(schema).values())
        row = array_schema(prefixItems=values, minItems=len(values), maxItems=len(values))
        if len(values) == 1:
            return {"anyOf": [row, values[0]]}
        return row
    if len(schema.tensors) == 1:
        return dict(tensor_schema(schema.tensors[0]).get("items", {}))
    return {}
