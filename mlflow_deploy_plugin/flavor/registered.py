"""Wrapping an existing model: a version in any MLflow flavor, or a file, becomes the next version, as checked ONNX.

The new version keeps signature, example, metadata, tags, description, run, parameters and metrics. Aliases, stages and
the verdicts of a gate stay with the old version. Packages that differ from requirements.txt cause a warning.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking.fluent import _get_experiment_id

from mlflow_deploy_plugin.errors import (
    CodeRefused,
    ConversionError,
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    ParityError,
)
from mlflow_deploy_plugin.flavor.batch import ModelData
from mlflow_deploy_plugin.flavor.convert import converters
from mlflow_deploy_plugin.flavor.convert.converted import TrainedModel
from mlflow_deploy_plugin.flavor.convert.converters import is_onnx
from mlflow_deploy_plugin.flavor.example_rows import fit_to_signature, made_up_rows, saved_example
from mlflow_deploy_plugin.flavor.parity import ParityReport
from mlflow_deploy_plugin.flavor.save import log_wrapped
from mlflow_deploy_plugin.flavor.saved_model import WrappedModel
from mlflow_deploy_plugin.flavor.wrap import ParityPolicy, PredictFunction, wrap
from mlflow_deploy_plugin.pyfunc.process import error_summary, load_failure, version_differences
from mlflow_deploy_plugin.registry import (
    PARITY_TAG,
    ResolvedModel,
    check_new_name,
    parse_model_uri,
    registry_client,
    registry_errors,
    resolve,
)
from mlflow_deploy_plugin.registry.model_files import download
from mlflow_deploy_plugin.registry.resolution import GIT_COMMIT_TAG
from mlflow_deploy_plugin.registry.runs import has_logged_models
from mlflow_deploy_plugin.registry.tags import (
    CAUSE_TAG,
    DATA_DIGEST_TAG,
    PARENT_TAG,
    TRAINING_TAG,
    WRAPPED_FROM_TAG,
    with_description_section,
)
from mlflow_deploy_plugin.runtime import FLAVOR, MLMODEL, PYTHON_FUNCTION, Input, Output
from mlflow_deploy_plugin.settings import absolute_path
from mlflow_deploy_plugin.statedir.files import temporary_folder

_KEPT_TAGS = (CAUSE_TAG, DATA_DIGEST_TAG, PARENT_TAG, TRAINING_TAG)
"""Our own tags that describe the training of the model; the others (gate, parity, fallback) judge the old version."""

_OTHERS_TAGS = ("onnxserve.", "mlflow.")
_PICKLES = (".joblib", ".pkl", ".pickle")
_FILE_ENDINGS = (*_PICKLES, *converters.FILE_ENDINGS)
_FRAMEWORKS = ("scikit-learn", "xgboost", "lightgbm", "catboost", "torch", "keras", "tensorflow", "statsmodels")
"""The distributions whose other version causes a warning, even if the model could be loaded."""

_logger = logging.getLogger("mlflow_deploy_plugin.flavor")


@dataclass(frozen=True)
class Original:
    """A trained model, as its framework has loaded it. `mlmodel` is None for a file without an MLmodel file."""

    model: TrainedModel
    mlmodel: Model | None = None
    predict_fn: PredictFunction = "predict"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WrappedVersion:
    """The outcome of `wrap_registered`.

    Attributes:
        source: models:/old/3, or the path of its files.
        name, version: the registered model and the new version; the version is empty after a dry run.
        model_id, run_id: the new logged model and its run; empty if there is none.
        model: the class of the original, and its framework.
        prediction: names of the outputs that `predict` returns.
    """

    source: str
    name: str
    version: str
    model_id: str
    run_id: str
    model: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    prediction: tuple[str, ...]
    report: ParityReport
    warnings: tuple[str, ...]


def wrap_registered(
    model_uri: str,
    register: str | None = None,
    *,
    data: ModelData = None,
    pyfunc_predict_fn: PredictFunction | None = None,
    parity: ParityPolicy = "require",
    allow_pickle: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] = _logger.info,
) -> WrappedVersion:
    """Convert a model that MLflow's own flavors, or joblib, have saved, prove it, and register it as the next version.

    Args:
        model_uri: models:/old/3 (or @alias, a stage), models:/m-…, runs:/RUN_ID/PATH, the folder of an MLmodel file, or
            a file: .joblib, .pkl, .pickle, .onnx, .keras, .pt2, .pt.
        register: the registered model of the new version; default: that of `model_uri`.
        data: rows for the proof and the reference; default: the model's input example, or rows that are made up from
            its signature, with a warning.
        pyfunc_predict_fn: as in `log_model`; default: as the model's pyfunc answers.
        parity: as in `log_model`.
        allow_pickle: consent to load a joblib or pickle file, which can run any code. A model in MLflow is loaded as
            MLflow itself loads it: naming it is consent.
        dry_run: True to convert and prove only.
        progress: called with a line before each long step.

    Raises:
        ConversionError, ParityError: as in `log_model`, in one line; or its files cannot be loaded here.
        InvalidConfig: an argument is not valid, there are no rows, or the model is wrapped already.
        InvalidArtifact: the address does not lead to a model.
        CodeRefused: a joblib or pickle file without consent.
        NotFound, RegistryUnavailable: of the registry.
    """
    check_new_name(register or "")
    path = absolute_path(model_uri) if model_uri.startswith("~") else Path(model_uri)  # messages say it as it was typed
    is_file = path.is_file() or (path.suffix.lower() in _FILE_ENDINGS and ":" not in model_uri)
    if is_file and not path.exists():
        raise NotFound(f"the file {path} does not exist")
    found = ResolvedModel(model_uri, path.stem, "", path.resolve().as_uri()) if is_file else resolve(model_uri)
    if not (register or dry_run) and (is_file or not parse_model_uri(model_uri).is_registered):
        raise InvalidConfig(f"{model_uri} is not registered; --register NAME (in Python register=) says as what")
    with temporary_folder("onnxserve-wrap-") as temporary:
        if is_file:
            folder, shown, original = path, str(path), load_file(path, allow_pickle)
        else:
            progress(f"reading {found.source}")
            folder = download(found.source, temporary)
            shown, original = found.source, load_folder(folder, found.source)
        if pyfunc_predict_fn is not None:
            original = replace(original, predict_fn=pyfunc_predict_fn)
        kind = "graph" if is_onnx(original.model) else type(original.model).__name__
        progress(f"converting and proving a {kind}")
        wrapped, notes = _convert(original, folder, shown, data, parity)
        for note in notes:
            progress(f"warning: {note}")
        made = WrappedVersion(
            source=found.source,
            name=register or found.name,
            version="",
            model_id="",
            run_id="",
            model=f"{kind} of {wrapped.converted.framework} {wrapped.converted.framework_version}",
            inputs=wrapped.converted.inputs,
            outputs=wrapped.converted.outputs,
            prediction=wrapped.converted.prediction,
            report=wrapped.report,
            warnings=notes,
        )
        if dry_run:
            return made
        progress(f"registering the next version of {made.name}")
        with registry_errors(f"model {made.name}"):
            return _log_next_version(made, wrapped, found, original)


def _convert(
    original: Original, folder: Path, shown: str, data: ModelData, parity: ParityPolicy
) -> tuple[WrappedModel, tuple[str, ...]]:
    model, mlmodel, notes = original.model, original.mlmodel, list(original.warnings)
    signature: ModelSignature | None = mlmodel.signature if mlmodel is not None else None
    if signature is not None and signature.params:
        notes.append("an ONNX form takes no params; those of the signature are left out")
        signature = ModelSignature(signature.inputs, signature.outputs)
    if signature is not None and original.predict_fn != "predict":
        signature = ModelSignature(signature.inputs)  # MLflow has inferred the outputs from `predict`
    example = saved_example(mlmodel, folder) if mlmodel is not None else None
    rows = data if data is not None else example
    is_made_up = rows is None and not is_onnx(model)
    if is_made_up:
        if signature is None or signature.inputs is None:
            raise InvalidConfig(
                f"{shown} has neither an input example nor a signature; --data FILE (data=) brings rows"
            )
        rows = made_up_rows(signature, model)
        notes.append(
            "it has no input example: it is proven on rows made up from its signature; --data brings real ones"
        )
    names = getattr(model, "feature_names_in_", None)
    rows = fit_to_signature(rows, signature, None if names is None else [str(name) for name in names])
    versions = "".join(f"; {note}" for note in original.warnings)
    try:
        wrapped = wrap(model, rows, signature=signature, predict_fn=original.predict_fn, parity=parity)
    except (ConversionError, ParityError) as error:
        reason = error.message.partition("\n")[0].rstrip(".:; ")
        alternative = ""
        if mlmodel is not None and not is_onnx(model):
            alternative = f"; {shown} is served as pyfunc as it stands"
        raise type(error)(f"{reason}{alternative}{versions}") from error
    except InvalidConfig as error:
        made_up = " (rows made up from the signature; --data FILE brings real ones)" if is_made_up else ""
        raise InvalidConfig(f"{error.message}{made_up}{versions}") from error
    if is_made_up:
        provenance = {name: value for name, value in wrapped.provenance.items() if not name.startswith("dataset_")}
        wrapped = replace(wrapped, example=None, reference=None, provenance=provenance)
    elif example is not None:
        wrapped = replace(wrapped, example=example)
    return wrapped, tuple(notes)


def _log_next_version(
    made: WrappedVersion, wrapped: WrappedModel, found: ResolvedModel, original: Original
) -> WrappedVersion:
    """Log the model into the original's run, register it, and copy the description and tags of the original."""
    client, mlmodel = registry_client(), original.mlmodel
    is_version = parse_model_uri(found.source).kind == "version"
    before = client.get_model_version(found.name, found.version) if is_version else None
    run = logged = None
    with suppress(MlflowException):  # the run may be deleted, and a folder may come from another MLflow
        run = client.get_run(found.aspects.get("run_id") or getattr(mlmodel, "run_id", None) or "")
        run = run if run.info.lifecycle_stage == "active" else None
    with suppress(MlflowException):
        logged = client.get_logged_model(found.aspects.get("model_id") or getattr(mlmodel, "model_id", None) or "")
    run_id = run.info.run_id if run is not None else None
    origin_tags = {WRAPPED_FROM_TAG: found.source, PARITY_TAG: wrapped.report.state}
    model_id = _create_logged_model(client, logged, run, origin_tags) if has_logged_models(client) else None
    info = log_wrapped(
        replace(wrapped, provenance=_provenance(wrapped.provenance, run)),
        registered_model_name=made.name,
        model_id=model_id,
        run_id=run_id,
        metadata=mlmodel.metadata if mlmodel is not None else None,
        tags=_kept_tags(before.tags if before else {}) | origin_tags,
    )
    if run_id and model_id and logged is not None:
        copied = client.get_logged_model(model_id).metrics or ()  # MLflow itself has copied the run's metrics.
        present = {(one.key, one.timestamp, one.step) for one in copied}
        missing = [
            Metric(one.key, one.value, one.timestamp, one.step, model_id, one.dataset_name, one.dataset_digest, run_id)
            for one in logged.metrics or ()
            if (one.key, one.timestamp, one.step) not in present
        ]
        if missing:
            client.log_batch(run_id, metrics=missing)
    version = str(info.registered_model_version)
    if before is not None and (description := with_description_section(before.description or "", [])):
        client.update_model_version(made.name, version, description)
    return replace(made, version=version, model_id=model_id or "", run_id=info.run_id or "")


def _create_logged_model(
    client: MlflowClient, logged: LoggedModel | None, run: Run | None, origin_tags: dict[str, str]
) -> str:
    if logged is not None:
        experiment_id, params = logged.experiment_id, logged.params
    elif run is not None:
        experiment_id, params = run.info.experiment_id, run.data.params
    else:
        experiment_id, params = _get_experiment_id(), {}
    created = client.create_logged_model(
        experiment_id=experiment_id,
        name=logged.name if logged else "model",
        source_run_id=run.info.run_id if run else None,
        tags=_kept_tags(logged.tags if logged else {}) | origin_tags,
        params=params,
        model_type=logged.model_type if logged else None,
    )
    return str(created.model_id)


def _kept_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name in _KEPT_TAGS or not name.startswith(_OTHERS_TAGS)}


def _provenance(provenance: Mapping[str, object], run: Run | None) -> dict[str, object]:
    """Return the provenance with the git commit and the dataset of the run that trained the model."""
    kept = {name: value for name, value in provenance.items() if not name.startswith("git_")}
    if run is None:
        return kept
    if commit := run.data.tags.get(GIT_COMMIT_TAG):
        kept["git_commit"] = commit
    if inputs := run.inputs.dataset_inputs:
        kept |= {"dataset_digest": inputs[-1].dataset.digest, "dataset_name": inputs[-1].dataset.name}
    return kept


def load_folder(folder: Path, shown: str) -> Original:
    """Load the model of an MLmodel folder, which `shown` names; its files may run code.

    Raises InvalidArtifact if MLflow cannot read the MLmodel file, InvalidConfig for our own flavor, NotInstalled
    without the framework, and ConversionError for Python code, a pyfunc with another method, or unreadable files.
    """
    if not (folder / MLMODEL).is_file():
        raise InvalidArtifact(f"{shown} is no model: it has no MLmodel file")
    try:
        mlmodel = Model.load(str(folder))
        flavors = mlmodel.flavors
        names = [name for name in flavors if name not in (FLAVOR, PYTHON_FUNCTION)]
    except Exception as error:  # noqa: BLE001 - whatever the YAML holds
        raise InvalidArtifact(f"{shown} is no model: its MLmodel file cannot be read: {error_summary(error)}") from None
    if FLAVOR in flavors:
        raise InvalidConfig(f"{shown} is wrapped already: it is served as ONNX as it stands")
    pyfunc = flavors.get(PYTHON_FUNCTION, {})
    loader = str(pyfunc.get("loader_module", f"mlflow.{names[0]}" if names else "mlflow.pyfunc.model"))
    if not names or not loader.startswith(f"mlflow.{names[0]}"):
        what = "a Python class" if loader.startswith("mlflow.pyfunc.") else f"Python code, loaded by {loader},"
        raise ConversionError(
            f"{shown} cannot be converted to ONNX: it is {what} of its author; it is served as pyfunc as it stands"
        )
    predict_fn = pyfunc.get("predict_fn", "predict")
    if predict_fn not in get_args(PredictFunction):
        raise ConversionError(
            f"{shown} cannot be converted to ONNX: it answers by {predict_fn!r}; an ONNX form answers by "
            f"{' or '.join(get_args(PredictFunction))}; it is served as pyfunc as it stands"
        )
    differences = version_differences(folder)
    try:
        converters.check_flavor(names[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other versions, which are named below
            if backend := flavors.get("keras", {}).get("keras_backend"):
                os.environ.setdefault("KERAS_BACKEND", backend)  # Keras is imported by the next line
            model = importlib.import_module(f"mlflow.{names[0]}").load_model(str(folder))
        converters.converter_for(model)
    except ConversionError as error:
        raise ConversionError(f"{error.message}; {shown} is served as pyfunc as it stands") from error
    except Exception as error:
        converters.check_installed(error, shown)
        raise ConversionError(
            f"{shown} cannot be loaded by mlflow.{names[0]}: {load_failure(error, folder)}"
        ) from error
    notes = [f"it was logged with {one}" for one in differences if one.split()[0] in _FRAMEWORKS]
    return Original(model, mlmodel, predict_fn, tuple(notes))


def load_file(path: Path, allow_pickle: bool) -> Original:
    """Load a joblib or pickle file, or a file of a framework's own format.

    Raises CodeRefused for a joblib or pickle file without `allow_pickle`, InvalidConfig for an unknown ending,
    InvalidArtifact or ConversionError if it cannot be loaded, and NotInstalled without its framework.
    """
    ending = path.suffix.lower()
    if ending in converters.FILE_ENDINGS:
        return Original(converters.load_file(str(path)))
    if ending not in _PICKLES:
        raise InvalidConfig(
            f"{path} is no model: a file ends in {', '.join(_FILE_ENDINGS)}; else name a model in MLflow, or the "
            "folder of an MLmodel file"
        )
    if not allow_pickle:
        raise CodeRefused(
            f"{path} can run any code while it is loaded; --allow-pickle (in Python allow_pickle=True) says that you "
            "trust who made it"
        )
    import joblib  # here: it comes with scikit-learn, an extra; it reads plain pickles, too

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = joblib.load(path)
        except Exception as error:
            converters.check_installed(error, str(path))
            raise InvalidArtifact(
                f"{path} cannot be loaded as a joblib or pickle file: {error_summary(error)}"
            ) from error
    versions = {
        f"it was saved by scikit-learn {one.message.original_sklearn_version} "  # type: ignore[union-attr]
        f"({one.message.current_sklearn_version} is installed)"  # type: ignore[union-attr]
        for one in caught
        if one.category.__name__ == "InconsistentVersionWarning"
    }
    return Original(model, warnings=tuple(sorted(versions)))
