"""JSON Schemas (draft 2020-12, as in OpenAPI 3.1) of the requests and responses of a model, made from its signature.

They allow what the server accepts and refuse what it refuses, as far as JSON Schema can say it: a null stands for a
missing value in a floating-point column, `20.0` is an integer, and columns that the model does not know are ignored.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime import COLUMN_TYPES, Artifact, Output, Schema, Tensor
from mlflow_deploy_plugin.server.protocols.v2_tensors import datatype_of

JsonSchema = dict[str, Any]

_ANY_COLUMN_NAME: JsonSchema = {"type": ["string", "integer"]}


def dtype_schema(dtype: str, is_nullable: bool = False) -> JsonSchema:
    """Return the schema of a value of a numpy dtype (`str`: strings). Floating point is nullable: null is NaN."""
    if dtype == "str":
        return {"type": ["string", "null"] if is_nullable else "string"}
    kind = np.dtype(dtype).kind
    if kind == "f":
        return {"type": ["number", "null"]}
    if kind in "iu":
        limits = np.iinfo(dtype)
        return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}
    return {"type": "boolean"} if kind == "b" else {}


def column_schemas(schema: Schema) -> dict[str, JsonSchema]:
    """Return the schema of a value of each column of the signature, by name."""
    missing = {name: entry.missing for entry in schema.inputs for name in entry.columns}
    return {
        column.name: {
            **dtype_schema(COLUMN_TYPES[column.type], missing.get(column.name) is not None),
            "description": column.type,
        }
        for column in schema.columns
    }


def nested(item: JsonSchema, rank: int) -> JsonSchema:
    """Return the schema of nested lists of `rank` levels. An empty outer list is refused: it has no inner sizes."""
    for _ in range(rank - 1):
        item = {"type": "array", "items": item}
    return {"type": "array", "items": item, **({"minItems": 1} if rank > 1 else {})} if rank else item


def tensor_schema(tensor: Tensor) -> JsonSchema:
    """Return the schema of a tensor as nested lists."""
    sizes = ", ".join("any" if size == -1 else str(size) for size in tensor.shape)
    return {
        **nested(dtype_schema(tensor.dtype), len(tensor.shape)),
        "description": f"{tensor.dtype}, shape [{sizes}], as nested lists",
    }


def record_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a row as an object. A nullable column may be left out of some rows, which are null in it."""
    if not schema.columns:
        return {"type": "object", "minProperties": 1, "description": "one row: tensor → its values"}
    properties = column_schemas(schema)
    needed = [c.name for c in schema.columns if c.required and "null" not in properties[c.name]["type"]]
    return {"type": "object", "properties": properties, "required": needed, "minProperties": 1}


def predict_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/predict`: one record, or `features` in the signature's order."""
    features: JsonSchema = {
        "type": "object",
        "properties": {"features": _row_schema(schema)},
        "required": ["features"],
        "title": "features in the signature's order",
    }
    record = {**record_schema(schema), "title": "one record"}
    if schema.columns:
        record["required"] = [column.name for column in schema.columns if column.required]
    return {"anyOf": [record, features]}


def invocations_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/invocations`: exactly one of MLflow's four fields, and `params`, which is ignored."""
    fields: dict[str, JsonSchema] = {
        "dataframe_split": _split_schema(schema),
        "dataframe_records": {"type": "array", "items": record_schema(schema), "minItems": 1},
        "instances": _named_or_rows(schema),
        "inputs": _named_or_rows(schema),
    }
    if not schema.names:  # a pyfunc whose inputs have no form as arrays
        fields = {name: {} for name in fields}
    params = {"type": ["object", "null"], "description": "accepted, and ignored by an ONNX graph"}
    return {
        "oneOf": [
            {"type": "object", "title": name, "properties": {name: field, "params": params}, "required": [name]}
            for name, field in fields.items()
        ]
    }


def azure_schema(schema: Schema) -> JsonSchema:
    """Return the schema of Azure ML's `/score`."""
    data = {"anyOf": [_split_schema(schema), _named_or_rows(schema)]} if schema.names else {}
    return _object({"input_data": data}, {"params": {"type": ["object", "null"]}})


def tfserving_schema(schema: Schema) -> JsonSchema:
    """Return the schema of TensorFlow Serving's `:predict`: rows, or columns and tensors by name, but no records."""
    by_column = {"anyOf": [_named_schema(schema), *_unnamed_schemas(schema)]}
    forms = {"instances": _rows_schema(schema), "inputs": by_column} if schema.names else {"instances": {}}
    signature: JsonSchema = {"type": "string", "enum": ["", "serving_default"]}
    return {
        "oneOf": [
            {
                "type": "object",
                "title": name,
                "properties": {name: form, "signature_name": signature},
                "required": [name],
            }
            for name, form in forms.items()
        ]
    }


def batch_schema(schema: Schema) -> JsonSchema:
    """Return the schema of `/predict/batch`: a bare list of rows, or a body of `/invocations`."""
    return {"anyOf": [_rows_schema(schema), *invocations_schema(schema)["oneOf"]]}


def v2_request_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a V2 infer request: the graph's inputs, or the columns of the signature."""
    types = dict(schema.tensor_schema.dtypes) if schema.names else {}
    if schema.columns:
        types |= schema.dtypes
    datatypes = [datatype_of(np.dtype(name).name) for name in _V2_DTYPES] + ["BYTES"]
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string", **({"enum": list(types)} if types else {})},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string", "enum": datatypes},
            "data": {"type": "array", "description": "flat or nested, as many values as the shape says"},
            "parameters": {"type": ["object", "null"]},
        },
    }
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {"type": "array", "items": tensor, **({"minItems": 1} if types else {})},
            "outputs": {"type": ["array", "null"], "items": wanted, "description": "those that are wanted; else all"},
            "parameters": {"type": ["object", "null"]},
        },
    }


def v2_response_schema(artifact: Artifact) -> JsonSchema:
    """Return the schema of a V2 infer response."""
    names = [output.name for output in artifact.outputs if datatype_of(output.dtype)]
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string", **({"enum": names} if names else {})},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    properties = {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": tensor},
    }
    return {"type": "object", "required": ["model_name", "model_version", "outputs"], "properties": properties}


def invocations_answer(artifact: Artifact) -> JsonSchema:
    """Return the schema of `{"predictions": …}`: nested lists for one output, an object for several.

    The predictions of a stock ONNX model may be anything.
    """
    outputs = {output.name: output for output in artifact.outputs}
    names = artifact.prediction
    if artifact.flavor == "onnx" or not outputs or any(name not in outputs for name in names):
        return _object({"predictions": {"type": ["array", "object"]}})
    if len(names) == 1:
        return _object({"predictions": _output_schema(artifact, outputs[names[0]])})
    return _object({"predictions": _object({name: _output_schema(artifact, outputs[name]) for name in names})})


def predict_answer(artifact: Artifact) -> JsonSchema:
    """Return the schema of the response of `/predict`."""
    properties: dict[str, JsonSchema] = {"prediction": {}}
    probabilities = _probabilities_schema(artifact)
    return _object({**properties, **_VERSION}, {"probabilities": probabilities} if probabilities else {})


def batch_answer(artifact: Artifact) -> JsonSchema:
    """Return the schema of the response of `/predict/batch`."""
    probabilities = _probabilities_schema(artifact)
    more: dict[str, JsonSchema] = {"probabilities": {"type": "array", "items": probabilities}} if probabilities else {}
    return _object({"predictions": {"type": ["array", "object"]}, "count": {"type": "integer"}, **_VERSION}, more)


_VERSION: dict[str, JsonSchema] = {"model": {"type": "string"}, "model_version": {"type": "string"}}
_V2_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


def _output_schema(artifact: Artifact, output: Output) -> JsonSchema:
    sizes = ", ".join("any" if size == -1 else str(size) for size in output.shape)
    item = dtype_schema(output.dtype, is_nullable=True) if output.dtype != "map" else {"type": "object"}
    if output.role == "label" and artifact.classes:
        item = {"enum": list(artifact.classes)}
    return {**nested(item, len(output.shape)), "description": f"{output.role}: {output.dtype}, shape [{sizes}]"}


def _probabilities_schema(artifact: Artifact) -> JsonSchema:
    """Return the schema of class → probability; empty if the model does not name the class of each column."""
    if not artifact.classes or not any(output.role == "probabilities" for output in artifact.outputs):
        return {}
    return {"type": "object", "additionalProperties": {"type": ["number", "null"]}}


def _split_schema(schema: Schema) -> JsonSchema:
    """Return the schema of pandas' `to_dict(orient="split")`; without `columns`, rows are in the signature's order."""
    return {
        "type": "object",
        "required": ["data"],
        "additionalProperties": False,
        "properties": {
            "columns": {"type": ["array", "null"], "items": _ANY_COLUMN_NAME},
            "data": {"type": "array", "minItems": 1},
            "index": {"type": ["array", "null"], "description": "one label a row; ignored"},
        },
        "description": f"columns: {', '.join(schema.names[:50]) or 'any'}",
    }


def _named_or_rows(schema: Schema) -> JsonSchema:
    """Return the schema of columns or tensors by name, one record, records, or rows."""
    return {"anyOf": [_named_schema(schema), _rows_schema(schema)]}


def _named_schema(schema: Schema) -> JsonSchema:
    named: JsonSchema = {"type": "object", "title": "values by name", "minProperties": 1}
    if schema.columns:
        named["required"] = [column.name for column in schema.columns if column.required]
    elif len(schema.tensors) > 1:
        named["required"] = list(schema.names)
        named["properties"] = {tensor.name: tensor_schema(tensor) for tensor in schema.tensors}
    return named


def _rows_schema(schema: Schema) -> JsonSchema:
    """Return the schema of rows as objects or, without names, as lists."""
    records = {"type": "array", "items": record_schema(schema), "minItems": 1, "title": "records"}
    return {"anyOf": [records, *_unnamed_schemas(schema)]} if schema.names else {"type": "array", "minItems": 1}


def _unnamed_schemas(schema: Schema) -> list[JsonSchema]:
    """Return the schemas of rows as lists, or of the only tensor; none if several tensors have to be named."""
    if schema.columns:
        return [{"type": "array", "items": _row_schema(schema), "minItems": 1, "title": "rows"}]
    if len(schema.tensors) == 1:
        return [{**tensor_schema(schema.tensors[0]), "title": "the tensor"}]
    return []


def _row_schema(schema: Schema) -> JsonSchema:
    """Return the schema of a row without names, in the signature's order, or of a tensor without its batch."""
    if schema.columns:
        values = list(column_schemas(schema).values())
        row: JsonSchema = {"type": "array", "prefixItems": values, "minItems": len(values), "maxItems": len(values)}
        return {"anyOf": [row, values[0]]} if len(values) == 1 else row
    if len(schema.tensors) == 1:
        return dict(tensor_schema(schema.tensors[0]).get("items", {}))
    return {}


def _object(required: Mapping[str, JsonSchema], optional: Mapping[str, JsonSchema] | None = None) -> JsonSchema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}
