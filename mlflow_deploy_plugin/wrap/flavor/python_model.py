"""Log a model without an ONNX form as pyfunc, with the MLflow flavor of its framework
or as an MLflow Python model.

A Python model is needed for networks with several outputs (or, in torch, several
inputs), `torch.export` programs, SavedModels, and columns of categories, durations or
time zones, which requests cannot contain.
"""

import inspect
import io
import logging
import os
import pickle
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import IO, Any, NamedTuple, TypeAlias, cast

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.models.model import ModelInfo
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import ConversionError, ModelError, SchemaMismatch, pass_exit
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.registry.runs import log_flavor
from mlflow_deploy_plugin.core.registry.tags import FALLBACK_TAG, MAX_TAG_LENGTH
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import (
    Batch,
    ModelData,
    column_type,
    column_values,
    unseen_category,
)
from mlflow_deploy_plugin.wrap.convert.converted import OriginalModel, TrainedModel, call_original
from mlflow_deploy_plugin.wrap.convert.converters import NetConverter, converter_for
from mlflow_deploy_plugin.wrap.flavor.saved_model import EXAMPLE_ROWS, own_requirement

_logger = logging.getLogger("mlflow_deploy_plugin.wrap")

LogOptions: TypeAlias = dict[str, Any]
"""Keyword arguments for the `log_model` or `save_model` of an MLflow flavor."""
_SKLEARN_OPTIONS = ("serialization_format", "pyfunc_predict_fn")
_COMPARED_ROWS = 10_000
"""The rows of the example on which the answers for texts and for categories are
compared.
"""
_TORCH_FORMATS = {"ScriptModule": "torch.jit", "ExportedProgram": "torch.export"}
"""The module that saves and loads a network, by class name. Other networks, such as
`torch.nn.Module`, are pickled.
"""


def log_as_pyfunc(
    model: TrainedModel,
    error: ModelError,
    flavor: str,
    input_example: ModelData,
    other_data: list[ModelData],
    options: LogOptions,
) -> ModelInfo:
    """Log a model without an ONNX form as pyfunc, and log the reason as a warning and a
    tag.

    The types of the columns in the signature come from all rows of the example. MLflow
    would read only the first rows.

    Args:
        model: the trained model.
        error: the reason why there is no ONNX form.
        flavor: the MLflow flavor of the model's framework.
        input_example: rows of the model's input, or None.
        other_data: other rows; the axes of a network that differ in size are free.
        options: the options for `log_model` of the MLflow flavor.
    """
    example = input_example
    if isinstance(example, list) and example and all(isinstance(row, dict) for row in example):
        example = pd.DataFrame(example)
    predict_fn = options.get("pyfunc_predict_fn", "predict")
    pyfunc_options = net_options(flavor, model, input_example, *other_data)
    if pyfunc_options is None and isinstance(example, pd.DataFrame):
        pyfunc_options = typed_columns_options(model, predict_fn, example)
    if pyfunc_options is None:
        arguments = _flavor_arguments(model, predict_fn, example, options["signature"])
    else:
        flavor, arguments = pyfunc_options
        options = {name: value for name, value in options.items() if name not in _SKLEARN_OPTIONS}
    _warn_of_fallback(model, error, flavor, options)
    module = import_module(f"mlflow.{flavor}")
    accepted = [
        *inspect.signature(module.save_model).parameters,
        *inspect.signature(Model.log).parameters,
    ]
    options = {
        **options,
        "tags": {**options["tags"], FALLBACK_TAG: error.message[:MAX_TAG_LENGTH]},
    }
    arguments |= {
        name: value for name, value in options.items() if value is not None or name not in arguments
    }
    if pyfunc_options is None:
        arguments[accepted[0]] = model  # Each flavor has its own name for the model.
    info = log_flavor(
        module, **{name: value for name, value in arguments.items() if name in accepted or value}
    )
    if info.run_id:
        mlflow.MlflowClient().set_tag(info.run_id, FALLBACK_TAG, options["tags"][FALLBACK_TAG])
    if info.signature is None or info.signature.inputs is None:
        _logger.warning(
            "The model is logged without a signature, so its columns have no types, and the "
            "answer for a missing value may depend on the other rows of the request: pass "
            "signature= or an input_example= that the model predicts"
        )
    return info


def _flavor_arguments(
    model: TrainedModel, predict_fn: str, example: ModelData, signature: ModelSignature | None
) -> LogOptions:
    """Return the first rows of the example, and the signature if none is passed, for
    the MLflow flavor of the model's framework.
    """
    rows: ModelData = None
    if isinstance(example, Mapping):
        rows = {key: values[:EXAMPLE_ROWS] for key, values in example.items()}
    elif example is not None:
        rows = example[:EXAMPLE_ROWS]
        if hasattr(rows, "numpy"):  # a torch or TensorFlow tensor
            if hasattr(rows, "detach"):
                rows = rows.detach().cpu()
            rows = np.asarray(rows)
    arguments: LogOptions = {"input_example": rows}
    if isinstance(example, pd.DataFrame):
        arguments |= table_options(model, predict_fn, example)
    rows = arguments["input_example"]
    has_signature = signature is not None or "signature" in arguments
    if rows is not None and predict_fn != "predict" and not has_signature:
        # Without a signature, MLflow would infer the outputs from `predict`.
        arguments["signature"] = infer_signature(rows, getattr(model, predict_fn)(rows))
    saved_rows = rows if rows is not None else {}
    try:
        mlflow_private._Example(saved_rows)
    except Exception as problem:  # noqa: BLE001 - MLflow's encoder may raise any error.
        _logger.warning(
            "the model is logged without its input_example, because MLflow cannot save it: %s",
            one_line(problem),
        )
        arguments["input_example"] = None
    return arguments


def _warn_of_fallback(
    model: TrainedModel, error: ModelError, flavor: str, options: Mapping[str, Any]
) -> None:
    """Log the reason for the fallback, and the user's modules that serving needs."""
    needed = ""
    if not options["code_paths"]:
        with open(os.devnull, "wb") as file:
            finder = _ModuleFinder(file)
            with suppress(Exception):  # The model may not be picklable.
                finder.dump(model)
        stdlib = sysconfig.get_path("stdlib")
        own_package = __name__.partition(".")[0]
        code = []
        # `__main__` is pickled by value.
        for name in sorted(finder.modules - {own_package, "__main__"}):
            loaded = sys.modules.get(name)
            paths = [*getattr(loaded, "__path__", [])] or [getattr(loaded, "__file__", None)]
            path = Path(paths[0] or stdlib)  # A built-in module has no file.
            is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
            if not is_installed and not path.is_relative_to(stdlib):
                code.append(os.path.relpath(path))
        if code:
            needed = f". It needs your own modules for serving: log them with code_paths={code}"
    _logger.warning(
        "%s. The model is logged by mlflow.%s instead and is served as pyfunc "
        '(fallback="error" prevents this)%s',
        reason_line(error),
        flavor,
        needed,
    )


def reason_line(error: ModelError) -> str:
    """Return the reason for a fallback as one line."""
    return error.message.partition("\n")[0].removesuffix("Worst rows:").rstrip(".;: ")


class _ModuleFinder(cloudpickle.CloudPickler):  # type: ignore[misc]
    """A pickler that collects the top-level modules of the pickled classes and
    functions.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.modules: set[str] = set()

    def reducer_override(self, value: object) -> object:
        if isinstance(value, type | FunctionType):
            self.modules.add(str(value.__module__).partition(".")[0])
        return super().reducer_override(value)


def _single_or_all(answers: dict[str, Array]) -> Array | dict[str, Array]:
    """Return the single output, or all outputs by name."""
    return next(iter(answers.values())) if len(answers) == 1 else answers


class NetModel(PythonModel):  # type: ignore[misc]
    """An MLflow Python model that wraps a torch, Keras or TensorFlow network with named
    input and output arrays.
    """

    _skip_type_hint_validation = True  # Avoid MLflow's warning at each import of this module.

    def __init__(self, net: TrainedModel) -> None:
        self.net = net

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        """Return a single output as an array, and several outputs as a mapping by
        name.
        """
        converter = cast(NetConverter, converter_for(self.net))
        answers = converter.original_model(self.net)(converter.read_batch(self.net, model_input))
        return _single_or_all(answers)

    def __getstate__(self) -> dict[str, object]:
        """Return the packed network by the name of its format, or the network itself by
        `net` if pickle can save it.
        """
        class_names = {kind.__name__ for kind in type(self.net).__mro__}
        for class_name, module in _TORCH_FORMATS.items():
            if class_name in class_names:
                buffer = io.BytesIO()
                import_module(module).save(self.net, buffer)
                return {module: buffer.getvalue()}
        if type(self.net).__module__.startswith("tensorflow"):
            import tensorflow as tf

            with TemporaryDirectory() as folder:
                tf.saved_model.save(self.net, f"{folder}/saved")
                archive = shutil.make_archive(f"{folder}/saved", "tar", f"{folder}/saved")
                return {"tf.saved_model": Path(archive).read_bytes()}
        if "KerasSaveable" in class_names:
            import keras

            return {"keras": (keras.backend.backend(), pickle.dumps(self.net))}
        return {"net": self.net}

    def __setstate__(self, state: dict[str, TrainedModel]) -> None:
        """Unpack the network, whose format is the only key of the state."""
        ((kind, packed),) = state.items()
        if kind in _TORCH_FORMATS.values():
            self.net = import_module(kind).load(io.BytesIO(packed))
        elif kind == "tf.saved_model":
            import tensorflow as tf

            with TemporaryDirectory() as folder:
                archive = Path(folder) / "saved.tar"
                archive.write_bytes(packed)
                shutil.unpack_archive(archive, f"{folder}/saved", filter="data")
                self.net = tf.saved_model.load(f"{folder}/saved")
        elif kind == "keras":
            os.environ.setdefault("KERAS_BACKEND", packed[0])
            self.net = pickle.loads(packed[1])
        else:
            self.net = packed


class TypedColumnsModel(PythonModel):  # type: ignore[misc]
    """An MLflow Python model that casts the columns of a request to the categories,
    durations and time zones of its model. Dates without a zone are in UTC.
    """

    _skip_type_hint_validation = True  # Avoid MLflow's warning at each import of this module.

    def __init__(
        self, model: TrainedModel, predict_fn: str, dtypes: dict[str, Any], closed: list[str]
    ) -> None:
        self.model = model
        self.predict_fn = predict_fn
        self.dtypes = dtypes
        self.closed = closed

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        """Return the model's prediction. Raises SchemaMismatch for an unknown category
        in a column of `closed`.
        """
        for name in self.closed:
            values = model_input[name].reset_index(drop=True)
            is_unknown = values.notna() & ~values.isin(self.dtypes[name].categories)
            if is_unknown.any():
                row, value = next(values[is_unknown].items())
                raise SchemaMismatch(
                    f"column {name!r}, row {row}: {value!r} is not a category of the model"
                )
        zoned = {
            name: pd.to_datetime(model_input[name], utc=True)
            for name, dtype in self.dtypes.items()
            if isinstance(dtype, pd.DatetimeTZDtype)
        }
        table = model_input.assign(**zoned).astype(self.dtypes)
        return getattr(self.model, self.predict_fn)(table)


def typed_columns_options(
    model: TrainedModel, predict_fn: str, table: ModelData
) -> tuple[str, LogOptions] | None:
    """Return flavor and arguments for a model that needs categorical or duration
    columns, or dates with a time zone; None for other models.

    Such a model has other predictions, or none, for the texts that requests contain.
    """
    if not isinstance(table, pd.DataFrame):
        return None
    rows = table.head(_COMPARED_ROWS)
    dtypes = {
        str(name): dtype
        for name, dtype in rows.dtypes.items()
        if dtype.name == "category" or dtype.kind == "m" or isinstance(dtype, pd.DatetimeTZDtype)
    }
    if not dtypes:
        return None
    try:
        answer = getattr(model, predict_fn)
        expected = answer(rows)
    except Exception:  # noqa: BLE001 - MLflow's flavor may call the model differently
        return None
    plain = _plain_columns(table)
    # The hours of all rows may be equal in both zones, as in the winter of London.
    has_zones = any(isinstance(dtype, pd.DatetimeTZDtype) for dtype in dtypes.values())
    with suppress(Exception):  # A model may raise any error for unknown values.
        if not has_zones and np.array_equal(answer(plain.head(_COMPARED_ROWS)), expected):
            return None
    closed = []
    for name, dtype in dtypes.items():
        if dtype.name != "category":
            continue
        changed = rows.head(EXAMPLE_ROWS)
        unseen = unseen_category(changed[name])
        try:
            if unseen is not None:
                changed = changed.assign(**{name: unseen})
            answer(changed)
        except Exception:  # noqa: BLE001 - libraries raise any error.
            closed.append(name)  # The model refuses an unknown category.
    arguments: LogOptions = {
        "python_model": TypedColumnsModel(model, predict_fn, dtypes, closed),
        "input_example": plain.head(EXAMPLE_ROWS),
    }
    # MLflow may raise any error for predictions that a signature cannot describe.
    with suppress(Exception):
        arguments["signature"] = _table_signature(plain, expected)
    return "pyfunc", arguments


def table_options(model: TrainedModel, predict_fn: str, table: pd.DataFrame) -> LogOptions:
    """Return example and signature of a table for MLflow. A model that cannot predict
    the rows has no signature.
    """
    plain = _plain_columns(table)
    rows = plain.head(EXAMPLE_ROWS)
    try:
        expected = getattr(model, predict_fn)(table.head(EXAMPLE_ROWS))
        return {"input_example": rows, "signature": _table_signature(plain, expected)}
    except BaseException as error:  # noqa: BLE001 - MLflow's flavor may call the model differently
        pass_exit(error)
        return {"input_example": rows}


def _plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with categories, durations and time zones in the form in which
    requests contain them. The server reads dates in UTC.
    """
    plain = table.astype({name: str for name, series in table.items() if series.dtype.kind == "m"})
    for name, series in table.items():
        if series.dtype.name == "category":
            plain[name] = column_values(series)
        elif isinstance(series.dtype, pd.DatetimeTZDtype):
            plain[name] = series.dt.tz_convert(None)
    return plain


def _table_signature(table: pd.DataFrame, prediction: object) -> ModelSignature:
    """Return the signature with the types of all rows, as for an ONNX model. The table
    has no categories.
    """
    if isinstance(prediction, np.ndarray) and prediction.ndim == 1:
        prediction = pd.Series(prediction)
    outputs = infer_signature(None, prediction).outputs
    specs = []
    # MLflow has more types than ONNX, such as dates and lists.
    for _, series in table.items():
        try:
            spec = ColSpec(DataType[column_type(series)], series.name)
        except ConversionError:
            kind = infer_signature(series.dropna().to_frame()).inputs.inputs[0].type
            if kind in (DataType.integer, DataType.long) and series.hasnans:
                kind = DataType.double  # MLflow refuses a missing integer.
            # MLflow refuses a missing list or object in a required column, but not a
            # missing date.
            is_required = isinstance(kind, DataType) or not series.hasnans
            spec = ColSpec(kind, series.name, required=is_required)
        specs.append(spec)
    if untyped := [spec.name for spec in specs if isinstance(spec.type, AnyType)]:
        _logger.warning(
            "The signature has no type for the columns %s, which mix types: requests in CSV are "
            "refused, and the answer for a missing value may depend on the other rows of the "
            "request. Convert each column to one type",
            untyped,
        )
    without_null = (DataType.boolean, DataType.binary)
    gaps = [spec.name for spec in specs if spec.type in without_null and table[spec.name].hasnans]
    if gaps:
        _logger.warning(
            "The boolean or binary columns %s have missing values, which are refused in requests, "
            "because MLflow cannot read them. Convert the columns to texts or numbers before the "
            "model is trained",
            gaps,
        )
    return ModelSignature(Schema(specs), outputs)


def net_options(
    flavor: str, model: TrainedModel, input_example: ModelData, *other_data: ModelData
) -> tuple[str, LogOptions] | None:
    """Return the flavor and arguments that log a network as pyfunc. Return None if
    `flavor` can log the network, if it is no network, or without an example.

    Axes that differ in size between the example and `other_data` are free. Raises
    InvalidConfig if the model fails.
    """
    framework = "torch" if flavor == "pytorch" else flavor
    if framework not in ("torch", "keras", "tensorflow") or input_example is None:
        return None
    converter = converter_for(model)
    if not hasattr(converter, "original_model"):  # The converter is from another distribution.
        return None
    net = _Net(model, cast(NetConverter, converter))
    example = net.answer(input_example)
    signature = net.signature(example, [data for data in other_data if data is not None])
    # Versions are read from modules, because the distribution may be tensorflow-cpu.
    # torch's local version (+cpu) is omitted.
    packages = [framework]
    if framework == "keras":
        packages.append(import_module(framework).backend.backend())
    requirements = []
    for package in packages:
        version = str(import_module(package).__version__).partition("+")[0]
        requirements.append(f"{package}=={version}")
    # The framework's flavor can log a module or a Keras model (whose class is `Model`)
    # with one input and one output.
    fits_flavor = any(kind.__name__ in ("Module", "Model") for kind in type(model).__mro__)
    if len(example.answers) != 1:
        fits_flavor = False
    if not example.rows.is_table and "" not in example.rows.tensors:
        fits_flavor = False
    if framework == "torch" and "output" not in example.answers:  # A dict has names.
        fits_flavor = False
    if fits_flavor:
        if framework != "keras":
            return None
        if not example.rows.is_table and example.rows.tensors[""].dtype.kind in "fiub":
            # mlflow.keras does not support tables or strings, and cannot save an
            # example (MLflow 3.17).
            return "keras", {
                "model": model,
                "signature": signature,
                "pip_requirements": requirements,
            }
    return "pyfunc", {
        "python_model": NetModel(model),
        "input_example": example.rows.unnamed,
        "signature": signature,
        "pip_requirements": [own_requirement(), *requirements],
    }


def _head(data: Batch) -> slice:
    """Return the positions of the rows that MLflow saves."""
    count = EXAMPLE_ROWS if data.has_rows else None
    return slice(count)


class _AnsweredExample(NamedTuple):
    """An input example with the predictions of the network.

    Attributes:
        data: all rows.
        rows: at most `EXAMPLE_ROWS` rows.
        answers: the outputs for `rows`, by name.
    """

    data: Batch
    rows: Batch
    answers: dict[str, Array]

    @property
    def prediction(self) -> Array | dict[str, Array]:
        return _single_or_all(self.answers)


@dataclass(frozen=True, eq=False)
class _Net:
    """A network and the converter that reads its batches."""

    model: TrainedModel
    converter: NetConverter

    @cached_property
    def original(self) -> OriginalModel:
        return self.converter.original_model(self.model)

    def answer(self, input_example: ModelData) -> _AnsweredExample:
        """Return the example with the predictions for its first rows."""
        data = Batch(self.converter.read_batch(self.model, input_example))
        if isinstance(data.data, pd.DataFrame):  # Signatures have strings as column names.
            data = Batch(data.data.rename(columns=str))
        rows = data.take(_head(data))
        return _AnsweredExample(data, rows, call_original(self.original, rows.data))

    def signature(self, example: _AnsweredExample, datasets: list[ModelData]) -> ModelSignature:
        """Return the signature. Axes that differ in size between the example and the
        datasets are free.
        """
        if example.rows.is_table or not datasets:
            described = example.data if example.data.is_table else example.rows
            return described.signature(example.prediction)
        inputs = []
        for data in datasets:
            batch = Batch(self.converter.read_batch(self.model, data))
            inputs.append(batch.take(_head(example.data)).tensors)
        source = "parity_data, reference_data"
        sizes = [
            Input(size.name, size.dtype, size.shape)
            for size in _declare_sizes(source, example.rows, inputs)
        ]
        answers = [call_original(self.original, tensors) for tensors in inputs]
        source = f"the model's predictions for {source}"
        outputs = [*_declare_sizes(source, Batch(example.answers), answers)]
        return example.rows.signature(example.prediction, sizes, outputs)


def _declare_sizes(source: str, tensors: Batch, others: list[dict[str, Array]]) -> Iterator[Output]:
    """Yield each tensor as an output whose shape has -1 for the rows and for each axis
    that differs in size from `others`. `source` names `others` in messages.
    """
    free_axes = tensors.free_axes(others, source)
    for name, array in tensors.tensors.items():
        shape = [-1, *array.shape[1:]]
        for axis in free_axes[name]:
            shape[axis] = -1
        yield Output(name, str(array.dtype), tuple(shape))
