"""Select the converter of a model. Converters of other distributions are checked first:
they may be more specific.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar, cast

from mlflow_deploy_plugin.core.errors import ConversionError, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.core.extensions import describe_entry, registered_in
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.converted import Converter, DynamicAxes, Forms, TrainedModel

GROUP = "onnxserve.converters"
LIBRARIES = "onnxserve.libraries"
"""The group of modules by the name of a library. Its models need `read_batch` and
`forms` of `FrameworkConverter`, and steps of scikit-learn models need `stand_in`, a
function from a step to a step of scikit-learn or None.
"""
_FOLDER = "mlflow_deploy_plugin.wrap.convert"
_MODULES = {
    **dict.fromkeys(("catboost", "lightgbm", "xgboost"), "sklearn"),
    **{
        name: name
        for name in (
            "keras",
            "onnx",
            "sklearn",
            "statsmodels",
            "tensorflow",
            "torch",
            "transformers",
        )
    },
    "sentence_transformers": "transformers",
}
"""The pip extra for each package of model classes. The converter module has the same
name, except in `_RENAMED`, or is an entry point of `LIBRARIES`.
"""
_RENAMED = {"sklearn": "sklearn.conversion"}

_NEVER = ("pmdarima",)
"""Packages whose models subclass a framework's classes but do not predict rows.
MLflow's flavors log such models.
"""

P = ParamSpec("P")
R = TypeVar("R")
_logger = logging.getLogger("mlflow_deploy_plugin.wrap")


class FrameworkConverter(Protocol):
    """A converter module of this package.

    The module for scikit-learn also has `known_values` and `unread_columns`, and the
    module for transformers has `asked_with`.
    """

    def read_batch(self, model: TrainedModel, data: ModelData) -> ModelInput: ...

    def forms(
        self,
        model: TrainedModel,
        batch: ModelInput | None,
        predict_fn: str,
        dynamic_axes: DynamicAxes,
    ) -> Forms: ...


class NetConverter(FrameworkConverter, Protocol):
    def original_model(self, model: TrainedModel) -> converted.OriginalModel: ...


@dataclass(frozen=True)
class _Registered:
    """A converter of another distribution, with the same functions as the modules of
    this package.
    """

    entry: EntryPoint
    converter: Converter

    def read_batch(self, model: TrainedModel, data: ModelData) -> ModelInput:
        if hasattr(self.converter, "read_batch"):
            batch: ModelInput = run_entry(self.entry, self.converter.read_batch, model, data)
            return batch
        return Batch.read(data).data

    def forms(
        self,
        model: TrainedModel,
        batch: ModelInput | None,
        predict_fn: str,
        dynamic_axes: DynamicAxes,
    ) -> Forms:
        options = {"predict_fn": predict_fn, "dynamic_axes": dynamic_axes}
        return [partial(run_entry, self.entry, self.converter.convert, model, batch, **options)]


def run_entry(
    entry: EntryPoint, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
) -> R:
    """Return the value of a function. Raises ConversionError if it fails."""
    try:
        return function(*arguments, **options)
    except OnnxserveError:
        raise
    except (Exception, SystemExit) as error:
        raise ConversionError(
            f"the converter {describe_entry(entry)} failed: {type(error).__name__}: "
            f"{one_line(error, 300)}"
        ) from error


def check_flavor(flavor: str) -> None:
    """Raise ConversionError if no converter supports the MLflow flavor. No model is
    loaded.
    """
    if flavor.replace("pytorch", "torch") not in _MODULES and not registered_in(GROUP):
        raise _unknown_framework(f"a model of mlflow.{flavor}")


def converter_for(model: TrainedModel) -> FrameworkConverter:
    """Return a registered converter, otherwise the module for the first supported
    package of the model's classes.

    A registered converter that fails is logged and skipped. Raises ConversionError if
    no converter is installed.
    """
    for entry in registered_in(GROUP).values():
        try:
            converter = entry.load()
            if converter.matches(model):
                return _Registered(entry, converter)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - code of another distribution
            reason = f"{type(error).__name__}: {one_line(error, 300)}"
            _logger.error("the converter %s cannot be used: %s", describe_entry(entry), reason)
    packages = packages_of(model)
    if is_onnx(model):
        packages = ["onnx"]
    elif "torch" in packages and "sentence_transformers" not in packages:
        # A net without its pipeline reads token ids.
        packages = [name for name in packages if name != "transformers"]
    framework = next((name for name in packages if name in _MODULES or name in _NEVER), "")
    if framework not in _MODULES:
        raise _unknown_framework(f"{type(model).__module__}.{type(model).__qualname__}")
    extra = _MODULES[framework]
    library = registered_in(LIBRARIES).get(framework)
    try:
        if library is not None:
            return cast(FrameworkConverter, library.load())
        return cast(FrameworkConverter, import_module(f"{_FOLDER}.{_RENAMED.get(extra, extra)}"))
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            needed = error.name
        else:
            needed = f"a newer {framework}"
        raise ConversionError(
            f"converting a {framework} model needs {needed}: pip install "
            f"'mlflow-onnxserve[{extra}]'"
        ) from None


def is_onnx(model: TrainedModel) -> bool:
    """Return True for an ONNX model or a path."""
    return isinstance(model, str | PathLike) or "onnx" in packages_of(model)


def packages_of(model: TrainedModel) -> list[str]:
    """Return the packages of the model's class and of its base classes."""
    return [kind.__module__.split(".")[0] for kind in type(model).__mro__]


def check_installed(error: BaseException, what: str) -> None:
    """Raise NotInstalled, with the pip command, if the error is caused by a framework
    that is not installed.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
    else:
        package = ""
    extra = _MODULES.get(package)
    if extra is not None:
        booster = "" if extra == package else f" {package}"  # The extra sklearn has no boosters.
        raise NotInstalled(
            f"{what} needs {package}, which is not installed here: pip install "
            f"'mlflow-onnxserve[{extra}]'{booster}"
        ) from None


def _unknown_framework(what: str) -> ConversionError:
    names = ", ".join(sorted(_MODULES))
    return ConversionError(
        f"{what} cannot be converted to ONNX: its framework is not supported; supported are {names}"
    )


_LOADERS: dict[str, tuple[str, str]] = {
    ".keras": ("keras", "saving.load_model"),
    ".pt2": ("torch", "export.load"),
    **dict.fromkeys((".pt", ".pth", ".ts"), ("torch", "jit.load")),
}
"""The framework and its load function for each file suffix."""
FILE_ENDINGS = (*_LOADERS, ".onnx")
"""The suffixes of model files that do not run code of their author when they are
loaded.
"""
_SAVED_MODEL = ("tensorflow", "saved_model.load")


def load_file(model: TrainedModel) -> TrainedModel:
    """Load a model file or SavedModel folder, and return other models unchanged. Raises
    ConversionError.
    """
    if not isinstance(model, str | PathLike):
        return model
    path = Path(model)
    is_saved_model = (path / "saved_model.pb").is_file()
    if not is_saved_model and path.suffix not in _LOADERS:
        return model
    framework, load = _SAVED_MODEL if is_saved_model else _LOADERS[path.suffix]
    try:
        return attrgetter(load)(import_module(framework))(str(path))
    except ModuleNotFoundError as error:
        extra = framework
        advice = ""
        if framework == "keras" and error.name != "keras":
            extra = str(error.name)
            advice = "; to use another backend, set KERAS_BACKEND=torch or jax"
        raise ConversionError(
            f"{path} needs {error.name}: pip install 'mlflow-onnxserve[{extra}]'{advice}"
        ) from None
    except Exception as error:
        raise ConversionError(
            f"{path} is not a model of {framework}: {one_line(error, 300)}"
        ) from error
