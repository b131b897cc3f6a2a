"""The folder of a saved model: the MLmodel file, the signature, the ONNX file and the
roles of its outputs.

`wrap/flavor/save.py` writes the section `flavors.onnxserve`. A model that has only
MLflow's `onnx` section is also accepted; its inputs are bound to the signature when the
graph is loaded (`serve/runtime/model.py`).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.mlmodel import (
    COLUMN_TYPES,
    FLAVOR,
    MALFORMED,
    PYTHON_FUNCTION,
    read_mlmodel,
)

ColumnType = Literal["double", "float", "integer", "long", "boolean", "string"]
Role = Literal["label", "probabilities", "scores", "values"]
ParityState = Literal["proven", "warned", "no-original"]
PYFUNC_PARITY: Final = "not applicable: a pyfunc is the original itself"

INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TENSOR_DTYPES: dict[str, str] = {
    "object": "str",  # MLflow writes either object or str for strings.
    **{dtype: dtype for dtype in ("str", "bool", "float16", "float32", "float64", *INTEGERS)},
}
"""The tensor dtypes in an MLmodel file, each with its numpy dtype in the notation of
`COLUMN_TYPES`.
"""
_MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class Column:
    """One column of a column-based signature. If `is_binary` is True, the strings of
    the column are bytes in base64; if `is_date` is True, they are ISO 8601 dates.
    """

    name: str
    type: ColumnType
    required: bool = True
    is_binary: bool = False
    is_date: bool = False


@dataclass(frozen=True)
class Tensor:
    """One tensor of a tensor-based signature. A single tensor may have an empty name.
    In `shape`, -1 means any size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """An ONNX input and the part of the signature that feeds it.

    Attributes:
        dtype: the numpy dtype of the input; `str` for strings.
        shape: the shape, with -1 for free dimensions.
        columns: the signature columns to stack along axis 1, in order; empty if the
            tensor of this name feeds it.
        missing: for strings, the text that replaces a missing value. With None, a
            missing value is an error.
        dimension_names: the symbolic name of each dimension, or an empty string. Only a
            loaded graph has the names.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    missing: str | None = None
    dimension_names: tuple[str, ...] = ()


def row_symbols(shape: Sequence[int]) -> tuple[str, ...]:
    """Return dimension names for a tensor. If its first dimension is free, that
    dimension is the rows of a table.
    """
    names = [""] * len(shape)
    if shape and shape[0] == -1:
        names[0] = "rows"
    return tuple(names)


@dataclass(frozen=True)
class Refusals:
    """The values that the original model refuses, as found by the parity check. The
    graph itself would accept them.

    `missing` and `infinite` list columns (or tensors) that refuse such numbers.
    `categories` has all allowed values.
    """

    missing: frozenset[str] = frozenset()
    infinite: frozenset[str] = frozenset()
    categories: Mapping[str, tuple[str | int | float | bool, ...]] = field(default_factory=dict)


NO_REFUSALS: Final = Refusals()


@dataclass(frozen=True)
class Output:
    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role = "values"


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer of a text model: a file of the `tokenizers` library, and the inputs
    of the graph that it computes.

    `prefix` precedes each text. A text of more than `max_length` tokens is refused,
    unless the file truncates it.
    """

    file: Path
    graph_inputs: Sequence[str]
    max_length: int
    prefix: str = ""


@dataclass(frozen=True)
class Artifact:
    """The content of an MLmodel folder.

    Attributes:
        onnx_file: the graph. A pyfunc has no graph; for a pyfunc this is the folder
            (`serve/runtime/pyfunc_artifact.py`).
        columns / tensors: the inputs in the signature, as columns or as tensors. Both
            are empty without a signature.
        has_signature: True if the MLmodel file has a signature. Otherwise `tensors` are
            the inputs of the loaded graph.
        inputs / outputs: the graph's, bound to the signature. They are empty until a
            stock `onnx` model is loaded.
        categories: for each text column of an encoder, the values that the encoder has
            learned, if they are few.
        prediction: the outputs that `predict` returns (for a stock `onnx` model: see
            `OnnxModel.prediction`).
        classes: the labels in the order of the columns of the probabilities.
        parity: the state and the figures of `parity.json`.
        provenance: git commit, dataset digest, environment lock; empty if unknown.
        reference: the file name of the reference sample (Parquet), or None.
        digests: `sha256:…` of the saved files, by path within the folder; empty if the
            model has no digests.
        optimization: for an optimized form of another version, its address `base`, its
            `base_digest`, and the figures of the comparison with the base
            (`wrap/optimization/`). Empty for any other version.
        undescribed: the reason why the inputs of a pyfunc cannot be named arrays; empty
            if they can.
        logged_columns: the columns of an undescribed pyfunc in the inference log;
            objects are JSON texts.
        is_streamable: True for a pyfunc that can stream its answer (`predict_stream`).
        tokenizer: for a text model, the tokenizer that converts the texts of `inputs`
            into the inputs of the graph.
        unread: columns that requests may contain, and that the model does not read.
        metadata: the `metadata` of the MLmodel file; empty if not set.
        default_outputs: the outputs of a V2 response if the request names none; empty
            for all outputs.
        runs_code: True for a pyfunc that may run code of its author, such as a pickle
            or a class of its own.
    """

    folder: Path
    onnx_file: Path
    flavor: Literal["onnxserve", "onnx", "python_function"]
    mlflow_version: str
    model_id: str
    run_id: str
    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    refusals: Refusals = NO_REFUSALS
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prediction: tuple[str, ...] = ()
    classes: tuple[str | int | float | bool, ...] = ()
    framework: str = "onnx"
    parity: Mapping[str, Any] = field(default_factory=lambda: {"state": "no-original"})
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    undescribed: str = ""
    is_streamable: bool = False
    tokenizer: TokenizerSpec | None = None
    logged_columns: tuple[Column, ...] = ()
    has_signature: bool = True
    unread: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    default_outputs: tuple[str, ...] = ()
    runs_code: bool = False

    @property
    def reference_file(self) -> Path | None:
        """The path of the reference sample, or None. Raises InvalidArtifact if it does
        not exist in the folder.
        """
        if self.reference is None:
            return None
        return _inside(self.folder, self.reference)

    @property
    def parity_state(self) -> str:
        if self.flavor == PYTHON_FUNCTION:
            return PYFUNC_PARITY
        return str(self.parity.get("state", "no-original"))


def read_artifact(folder: Path) -> Artifact:
    """Read the MLmodel file in `folder`, without opening the graph.

    Raises InvalidArtifact if a file or an ONNX flavor is missing, or if no graph can
    take the signature.
    """
    document = read_mlmodel(folder)
    flavors = document.get("flavors")
    if not isinstance(flavors, Mapping):
        flavors = {}
    flavor: Literal["onnxserve", "onnx"] = "onnxserve" if FLAVOR in flavors else "onnx"
    section = flavors.get(flavor)
    if not isinstance(section, Mapping):
        entries = ", ".join(sorted(map(str, flavors))) or "none"
        raise InvalidArtifact(
            f"this model has the flavors {entries}, none of which is onnxserve or onnx: "
            "log it with onnxserve.log_model"
        )
    try:
        return _parse_artifact(folder, document, flavor, section)
    except MALFORMED as error:
        raise InvalidArtifact(
            f"the MLmodel file cannot be understood: {type(error).__name__}: {error}"
        ) from None


def _parse_artifact(
    folder: Path,
    document: Mapping[str, Any],
    flavor: Literal["onnxserve", "onnx"],
    section: Mapping[str, Any],
) -> Artifact:
    """Return the artifact of an ONNX flavor. Raises one of `MALFORMED` or
    InvalidArtifact if an entry is not valid.
    """
    content: Mapping[str, Any] = {key: value for key, value in section.items() if value}
    inputs = tuple(
        Input(
            *_read_array(entry, entry),
            tuple(map(checked_name, entry.get("columns") or ())),
            entry.get("missing"),
        )
        for entry in content.get("inputs", ())
    )
    columns, tensors = _read_signature(document.get("signature"), inputs)
    refused: Mapping[str, Any] = content.get("refused", {})
    refused_categories = refused.get("categories") or {}
    tokenizer = content.get("tokenizer")
    if tokenizer is not None:
        tokenizer = TokenizerSpec(**tokenizer | {"file": _inside(folder, tokenizer["file"])})
    return Artifact(
        folder=folder,
        onnx_file=_inside(folder, str(section["data"])),
        flavor=flavor,
        **read_origin(document),
        columns=columns,
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(
            Output(*_read_array(entry, entry), entry["role"])
            for entry in content.get("outputs", ())
        ),
        refusals=Refusals(
            frozenset(map(str, refused.get("missing") or ())),
            frozenset(map(str, refused.get("infinite") or ())),
            {str(name): tuple(dict.fromkeys(known)) for name, known in refused_categories.items()},
        ),
        categories={
            str(name): tuple(map(str, known))
            for name, known in content.get("categories", {}).items()
        },
        prediction=tuple(content.get("prediction", ())),
        classes=tuple(content.get("classes", ())),
        framework=str(content.get("framework", "onnx")),
        parity=dict(content.get("parity", {"state": "no-original"})),
        provenance=dict(content.get("provenance", {})),
        reference=content.get("reference", {}).get("data"),
        has_signature=bool(columns or tensors),
        digests={str(name): str(digest) for name, digest in content.get("digests", {}).items()},
        optimization=dict(content.get("optimization", {})),
        tokenizer=tokenizer,
        unread=tuple(map(str, content.get("unread", ()))),
        default_outputs=tuple(map(str, content.get("default_outputs", ()))),
    )


class Origin(TypedDict):
    """The version of MLflow and the run that saved a model, and its metadata."""

    mlflow_version: str
    model_id: str
    run_id: str
    metadata: Mapping[str, Any]


def read_origin(document: Mapping[str, Any]) -> Origin:
    """Return the origin that an MLmodel file names; an unknown entry is empty."""
    return {
        "mlflow_version": str(document.get("mlflow_version", "")),
        "model_id": str(document.get("model_id") or document.get("model_uuid") or ""),
        "run_id": str(document.get("run_id") or ""),
        "metadata": document.get("metadata") or {},
    }


def check_digests(artifact: Artifact) -> None:
    """Raise InvalidArtifact if a file differs from the digest in the MLmodel file."""
    for name, expected in artifact.digests.items():
        path = _inside(artifact.folder, name)
        try:
            with path.open("rb") as stream:
                actual = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        except OSError as error:
            raise InvalidArtifact(
                f"the model's file {name!r} cannot be read: {error.strerror}"
            ) from None
        if actual != expected:
            raise InvalidArtifact(altered_file_message(name, actual, expected))


def altered_file_message(name: str, actual: str, expected: str) -> str:
    return (
        f"the file {name!r} was changed: its hash is {actual[:19]}, but the MLmodel file has "
        f"{expected[:19]}"
    )


def _inside(folder: Path, relative: str) -> Path:
    """Return the path of a file of the model. Raises InvalidArtifact if it does not
    exist in the folder.
    """
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArtifact(
            f"the MLmodel file names {relative!r}, which is outside of the model's folder"
        )
    # isfile also returns False for a name that is not a valid file name.
    if not os.path.isfile(path):
        raise InvalidArtifact(f"the model's file {relative!r} is missing")
    return path


def checked_name(name: object) -> str:
    """Return the name of a column or tensor. Raises TypeError or ValueError unless it
    is a number or Unicode text.

    MLflow writes numbers as the column names of a frame that was made from an array.
    """
    if type(name) is int:
        return str(name)
    if not isinstance(name, str):
        raise TypeError(f"a name has the type {type(name).__name__}; a text is expected")
    name.encode()
    return name


def read_tensor(entry: Mapping[str, Any]) -> Tensor:
    """Return a tensor of a signature. Raises one of `MALFORMED` if the entry does not
    describe a numpy array.
    """
    return Tensor(*_read_array({"name": "", **entry}, entry["tensor-spec"]))


def _read_array(
    entry: Mapping[str, Any], spec: Mapping[str, Any]
) -> tuple[str, str, tuple[int, ...]]:
    """Return the name in `entry`, and the dtype and shape in `spec`. Raises TypeError
    or ValueError if one of them is not valid.
    """
    name = checked_name(entry["name"])
    dtype = spec["dtype"]
    shape = tuple(spec["shape"])
    if dtype not in TENSOR_DTYPES:
        raise ValueError(f"{name[:100]!r} has the dtype {dtype!r:.100}, which is not supported")
    if len(shape) > _MAX_DIMENSIONS or not all(
        type(size) is int and -1 <= size < 2**63 for size in shape
    ):
        raise ValueError(
            f"{name[:100]!r} has the shape {shape!r:.100}; integers are expected, -1 for any size"
        )
    return name, TENSOR_DTYPES[dtype], shape


def _read_signature(
    signature: Mapping[str, Any] | None, inputs: Iterable[Input]
) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    """Return the columns or the tensors of a signature. An only column without a name
    gets the name that the graph's inputs have for it.
    """
    fed = list(chain.from_iterable(array.columns for array in inputs))
    only_name = fed[0] if len(fed) == 1 else None
    columns = []
    tensors = []
    for position, entry in enumerate(json.loads((signature or {}).get("inputs") or "[]")):
        if entry.get("type") == "tensor":
            tensors.append(read_tensor(entry))
        elif entry.get("type") in COLUMN_TYPES:
            # MLflow uses the position as the name of a column without a name.
            name = checked_name(entry.get("name", only_name or str(position)))
            columns.append(Column(name, entry["type"], entry.get("required", True)))
        else:
            raise InvalidArtifact(
                f"column {entry.get('name', position)!r} has the type {entry.get('type')!r}, "
                "which an ONNX model cannot take; the possible types are "
                f"{', '.join(COLUMN_TYPES)}"
            )
    return tuple(columns), tuple(tensors)
