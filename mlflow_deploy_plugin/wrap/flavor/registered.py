"""Wrap an existing model: convert a registered version or a file to checked ONNX, and
register the next version.

Signature, example, metadata, tags, description, run, parameters and metrics are copied
to the new version. Aliases, stages and the verdicts of a gate remain on the old
version. Packages that differ from requirements.txt cause a warning.
"""

import importlib
import inspect
import json
import logging
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient, environment_variables
from mlflow.entities import LoggedModel, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import MODEL_CONFIG

from mlflow_deploy_plugin.core import errors, mlflow_private
from mlflow_deploy_plugin.core.extensions import load_entry, registered_in
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import (
    COLUMN_TYPES,
    FLAVOR,
    MLMODEL,
    PYTHON_FUNCTION,
    read_mlmodel,
)
from mlflow_deploy_plugin.core.model_code import MODEL_CODE, require_model_code
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import (
    GIT_COMMIT_TAG,
    PARITY_TAG,
    ResolvedModel,
    check_new_name,
    resolve,
)
from mlflow_deploy_plugin.core.registry.runs import has_logged_models, log_flavor
from mlflow_deploy_plugin.core.registry.tags import (
    WRAPPED_FROM_TAG,
    kept_tags,
    with_description_section,
)
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.pyfunc.process import (
    error_summary,
    load_failure,
    version_differences,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Output
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import runs_code
from mlflow_deploy_plugin.wrap.convert import converters
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.convert.converted import Settings, TrainedModel
from mlflow_deploy_plugin.wrap.convert.converters import is_onnx
from mlflow_deploy_plugin.wrap.flavor.example_rows import (
    fit_to_signature,
    made_up_rows,
    saved_example,
)
from mlflow_deploy_plugin.wrap.flavor.parity import ParityReport
from mlflow_deploy_plugin.wrap.flavor.save import log_wrapped
from mlflow_deploy_plugin.wrap.flavor.saved_model import WrappedModel
from mlflow_deploy_plugin.wrap.flavor.wrap import (
    ParityPolicy,
    PredictFunction,
    WrapOptions,
    without_columns,
    wrap,
)

_PICKLES = (".joblib", ".pkl", ".pickle")
_FILE_ENDINGS = (*_PICKLES, *converters.FILE_ENDINGS)
_FILES = "onnxserve.files"
"""The group of functions by the ending of a file, such as `pmml`. Each takes the path
and rows (or None), and returns the kind of model in words, and the arguments of
mlflow.pyfunc.log_model, whose artifact has the same name. It raises InvalidArtifact.
"""
_FRAMEWORKS = (
    "scikit-learn",
    "xgboost",
    "lightgbm",
    "catboost",
    "torch",
    "keras",
    "tensorflow",
    "statsmodels",
)
"""The distributions that cause a warning if another version is installed, even if the
model can be loaded.
"""
_WITHOUT_SETTINGS = (
    "sklearn",
    "lightgbm",
    "catboost",
    "statsmodels",
    "tensorflow",
    "keras",
    "onnx",
)
"""The flavors whose pyfunc ignores `params`, and has no `model_config`."""

_logger = logging.getLogger("mlflow_deploy_plugin.wrap")


@dataclass(frozen=True)
class Original:
    """A trained model, loaded by its framework.

    Attributes:
        folder: the folder of its MLmodel file, or its file.
        source: the name of the model in messages.
        mlmodel: None if there is no MLmodel file.
    """

    folder: Path
    source: str
    model: TrainedModel
    mlmodel: Model | None = None
    predict_fn: PredictFunction = "predict"
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WrappedVersion:
    """The outcome of `wrap_registered`.

    Attributes:
        source: models:/old/3, or the path of the model's files.
        name: the registered model.
        version: the new version; empty after a dry run.
        model: the class and framework of the original.
        prediction: names of the outputs that `predict` returns.
        model_id: the new logged model; empty if it does not exist.
        run_id: the run of the logged model; empty if it does not exist.
        is_pyfunc: True for a PMML file, which is not converted to ONNX.
    """

    source: str
    name: str
    model: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    prediction: tuple[str, ...]
    report: ParityReport
    warnings: tuple[str, ...] = ()
    version: str = ""
    model_id: str = ""
    run_id: str = ""
    is_pyfunc: bool = False


def wrap_registered(
    model_uri: str,
    register: str | None = None,
    *,
    data: ModelData = None,
    pyfunc_predict_fn: PredictFunction | None = None,
    parity: ParityPolicy = "require",
    allow_pickle: bool = False,
    dry_run: bool = False,
    drop: Collection[str] = (),
    event_time: str | None = None,
    progress: ProgressCallback = _logger.info,
) -> WrappedVersion:
    """Convert a model saved by an MLflow flavor or joblib, check the result, and
    register it as the next version.

    Args:
        model_uri: models:/old/3 (or @alias, a stage), models:/m-…, runs:/RUN_ID/PATH,
            the folder of an MLmodel file, or a file: .joblib, .pkl, .pickle, .onnx,
            .keras, .pt2, .pt, .pmml. A PMML file is not converted to ONNX: it becomes a
            pyfunc, whose inputs and outputs are the fields of the file.
        register: the registered model of the new version; default: the model of
            `model_uri`.
        data: rows for the proof and the reference; default: the model's input example.
            Without an example, rows are generated from the signature, with a warning.
        pyfunc_predict_fn: the method that `predict` corresponds to: "predict" or
            "predict_proba"; default: the method that the model's pyfunc calls.
        parity: "require" raises ParityError if the predictions differ; "warn" registers
            the version in the state `warned`.
        allow_pickle: True to allow a joblib or pickle file, which can run any code.
            Models in MLflow do not need this permission, although loading them may also
            run code.
        dry_run: True to convert and compare without registering a version.
        drop: columns that the model does not read, and that are left out of the new
            version. Requests may still contain them. The columns that a
            ColumnTransformer drops are left out in any case.
        event_time: the column with the time of each row, which is left out in the same
            way, and becomes the event time of the reference.
        progress: a function that is called with a line of text before each long step.

    Raises:
        ConversionError: a part of the model cannot be converted; the message names this
            part.
        ParityError: the ONNX form gives other answers.
        InvalidConfig: an argument is invalid, there are no rows, or the model is
            wrapped already.
        InvalidArtifact: there is no model.
        CodeRefused: the model is a joblib or pickle file, and `allow_pickle` is false.
        NotInstalled: Java is missing for a PMML file, or the framework of the model.
        NotFound: the model does not exist.
        RegistryUnavailable: MLflow does not answer.
    """
    check_new_name(register or "")
    file = _model_file(model_uri)
    if file is None:
        resolved = resolve(model_uri)
    else:
        resolved = ResolvedModel(model_uri, file.stem, "", file.resolve().as_uri())
    if not (register or dry_run) and (
        file is not None or not parse_model_uri(model_uri).is_registered
    ):
        raise errors.InvalidConfig(
            f"{model_uri} is not registered; set --register NAME (in Python register=)"
        )
    name = register or resolved.name
    if file is not None and _entry_of(file) is not None:
        return _wrap_as_pyfunc(file, resolved, name, data, dry_run, progress)
    with temporary_folder("onnxserve-wrap-") as temporary:
        if file is not None:
            original = load_file(file, allow_pickle)
        else:
            progress(f"reading {resolved.source}")
            folder = download(resolved.source, temporary)
            original = load_folder(folder, resolved.source)
        if pyfunc_predict_fn is not None:
            original = replace(original, predict_fn=pyfunc_predict_fn)
        kind = "graph" if is_onnx(original.model) else type(original.model).__name__
        progress(f"converting and proving a {kind}")
        wrapped, notes = convert_original(
            original, proof_rows(original, data), parity, drop, event_time
        )
        for note in notes:
            progress(f"warning: {note}")
        converted = wrapped.converted
        outcome = WrappedVersion(
            source=resolved.source,
            name=name,
            model=f"{kind} of {converted.framework} {converted.framework_version}",
            inputs=converted.inputs,
            outputs=converted.outputs,
            prediction=converted.prediction,
            report=wrapped.report,
            warnings=notes,
        )
        if dry_run:
            return outcome
        progress(f"registering the next version of {outcome.name}")
        with registry_errors(f"model {outcome.name}"):
            return _log_next_version(outcome, wrapped, resolved, original)


def _model_file(model_uri: str) -> Path | None:
    """Return the path of a model in one file, or None for a URI or a folder. Raises
    NotFound if the file does not exist.
    """
    path = Path(model_uri)
    if model_uri.startswith("~"):
        path = absolute_path(model_uri)
    if path.is_file():
        return path
    is_model = path.suffix.lower() in _FILE_ENDINGS or _entry_of(path) is not None
    if not is_model or ":" in model_uri:
        return None
    if not path.exists():
        raise errors.NotFound(f"the file {path} does not exist")
    return path


def _entry_of(path: Path) -> EntryPoint | None:
    """Return the entry point that reads files with this ending, if it is not ours."""
    ending = path.suffix.lower()
    return None if ending in _FILE_ENDINGS else registered_in(_FILES).get(ending[1:])


def _wrap_as_pyfunc(
    path: Path,
    resolved: ResolvedModel,
    name: str,
    data: ModelData,
    dry_run: bool,
    progress: ProgressCallback,
) -> WrappedVersion:
    """Evaluate the rows with the file and, unless `dry_run`, register the file as a
    pyfunc.

    Args:
        path: a file that an entry point reads.
        resolved: the file as the source of the version.
        name: the registered model of the new version.
        data: rows for the check, or None.
        dry_run: True to return the outcome without a version.
        progress: a function that is called with a line of text before each step.
    """
    progress(f"reading {path}")
    entry = cast(EntryPoint, _entry_of(path))
    kind, options = load_entry(entry)(path, data)
    signature = options["signature"]
    inputs = [
        Input(spec.name, dtype=COLUMN_TYPES[spec.type.name], shape=(-1,), columns=(spec.name,))
        for spec in signature.inputs
    ]
    outputs = [
        Output(spec.name, dtype=COLUMN_TYPES[spec.type.name], shape=(-1,))
        for spec in signature.outputs
    ]
    outcome = WrappedVersion(
        source=str(path),
        name=name,
        model=kind,
        is_pyfunc=True,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        prediction=tuple(signature.outputs.input_names()),
        report=ParityReport("no-original"),
    )
    if dry_run:
        return outcome
    progress(f"registering the next version of {name}")
    with temporary_folder("onnxserve-wrap-") as folder, registry_errors(f"model {name}"):
        # MLflow cannot read a path with the characters # or %.
        options["artifacts"] = {entry.name: shutil.copy(path, str(folder / f"model.{entry.name}"))}
        tags = {WRAPPED_FROM_TAG: resolved.source}
        info = log_flavor(mlflow.pyfunc, registered_model_name=name, tags=tags, **options)
    version = str(info.registered_model_version)
    return replace(outcome, version=version, model_id=info.model_id or "", run_id=info.run_id or "")


def convert_original(
    original: Original,
    proof: "ProofRows",
    parity: ParityPolicy,
    drop: Collection[str],
    event_time: str | None,
) -> tuple[WrappedModel, tuple[str, ...]]:
    """Return the wrapped model and the warnings for its user.

    Args:
        original: the loaded model.
        proof: the rows for the proof (`proof_rows`).
        parity: the policy if the predictions differ.
        drop: columns that the model does not read.
        event_time: the column of event times, or None.
    """
    settings: Settings = {}
    if original.mlmodel is not None:
        settings = _settings(original.mlmodel, original.folder)
    # An ONNX form ignores the params of a signature.
    params = original.mlmodel.get_params_schema() if original.mlmodel is not None else None
    notes = [*original.warnings]
    if params:
        defaults = ", ".join(f"{spec.name}={spec.default!r}" for spec in params)
        effect = "they have no effect on this model"
        if settings:
            effect = "the model always uses their defaults"
        notes.append(f"requests to an ONNX form have no params ({defaults}); {effect}")
    wrapped = _wrap_on(original, settings, proof, parity, drop, event_time)
    # Rows that were generated become neither the example nor the reference.
    if proof.is_made_up:
        provenance = {
            name: value
            for name, value in wrapped.provenance.items()
            if not name.startswith("dataset_")
        }
        wrapped = replace(wrapped, example=None, reference=None, provenance=provenance)
    elif proof.example is not None:
        example = without_columns(proof.example, wrapped.converted.unread)
        wrapped = replace(wrapped, example=example)
    return wrapped, (*notes, *proof.notes)


class ProofRows(NamedTuple):
    """The rows on which the original and the ONNX form are compared.

    Attributes:
        rows: the rows, in the order and with the types of the signature.
        example: the input example that was saved with the model.
        is_made_up: True if the rows were generated from the signature.
        notes: warnings about the rows.
    """

    rows: ModelData
    example: ModelData
    is_made_up: bool
    notes: tuple[str, ...] = ()


def _request_signature(original: Original) -> ModelSignature | None:
    """Return the signature of requests to an ONNX form, which have no params.

    Outputs are dropped if they were inferred from another method, or from MLflow's
    table of labels and scores.
    """
    mlmodel = original.mlmodel
    if mlmodel is None or mlmodel.signature is None:
        return None
    if original.predict_fn != "predict" or "transformers" in mlmodel.flavors:
        return ModelSignature(mlmodel.signature.inputs)
    return ModelSignature(mlmodel.signature.inputs, mlmodel.signature.outputs)


def proof_rows(original: Original, data: ModelData) -> ProofRows:
    """Return the data, the saved example, or rows that are generated from the
    signature. Raises InvalidConfig if there are neither rows nor a signature.
    """
    model = original.model
    signature = _request_signature(original)
    example: ModelData = None
    if original.mlmodel is not None:
        example = saved_example(original.mlmodel, original.folder)
    rows = data if data is not None else example
    is_made_up = rows is None and not is_onnx(model)
    notes: tuple[str, ...] = ()
    if is_made_up:
        if signature is None or signature.inputs is None:
            raise errors.InvalidConfig(
                f"{original.source} has neither an input example nor a signature; pass rows with "
                "--data FILE (data=)"
            )
        rows = made_up_rows(signature, model)
        notes = (
            "it has no input example: it is compared on rows generated from its signature; pass "
            "real rows with --data",
        )
    names = getattr(model, "feature_names_in_", None)
    columns = None if names is None else [str(name) for name in names]
    return ProofRows(fit_to_signature(rows, signature, columns), example, is_made_up, notes)


def _wrap_on(
    original: Original,
    settings: Settings,
    proof: ProofRows,
    parity: ParityPolicy,
    drop: Collection[str],
    event_time: str | None,
) -> WrappedModel:
    """Convert the model, and compare it on the rows. The messages of errors contain the
    warnings of the original and the alternatives.

    Raises:
        ConversionError: the model, or one of the settings, cannot be converted.
        ParityError: the predictions differ, and `parity` requires equal ones.
        InvalidConfig: the model cannot read the rows.
    """
    version_notes = "".join(f"; {note}" for note in original.warnings)
    try:
        return wrap(
            _bind_settings(original.model, settings, original.predict_fn),
            proof.rows,
            WrapOptions(
                signature=_request_signature(original),
                predict_fn=original.predict_fn,
                parity=parity,
                drop=drop,
                event_time=event_time,
            ),
        )
    except (errors.ConversionError, errors.ParityError) as error:
        reason = error.message.partition("\n")[0].rstrip(".:; ")
        alternative = ""
        if original.mlmodel is not None and not is_onnx(original.model):
            alternative = f"; {original.source} can be served as pyfunc without conversion"
        raise type(error)(f"{reason}{alternative}{version_notes}") from error
    except errors.InvalidConfig as error:
        made_up = ""
        if proof.is_made_up:
            made_up = " (rows generated from the signature; pass real rows with --data FILE)"
        raise errors.InvalidConfig(f"{error.message}{made_up}{version_notes}") from error


def _settings(mlmodel: Model, folder: Path) -> Settings:
    """Return the arguments that MLflow's pyfunc passes to the model, unless the flavor
    ignores them.

    Raises InvalidArtifact if the file with the arguments is damaged.
    """
    sections = read_mlmodel(folder).get("flavors", {})
    flavors = [name for name in sections if name not in (FLAVOR, PYTHON_FUNCTION)]
    if not flavors or flavors[0] in _WITHOUT_SETTINGS:
        return {}
    # Models that MLflow before 2.10 saved for transformers have an `inference_config`.
    config = sections.get(PYTHON_FUNCTION, {}).get(MODEL_CONFIG) or {}
    older = folder / "components" / "inference_config.txt"
    if flavors[0] == "transformers" and older.is_file():
        try:
            config = json.loads(older.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise errors.InvalidArtifact(
                f"the model's file components/{older.name} is damaged: {error}"
            ) from None
    if not isinstance(config, dict):
        raise errors.InvalidArtifact(
            f"the model_config {config!r} is not a mapping; correct it in the MLmodel file or "
            f"components/{older.name}"
        )
    if flavors[0] == "pytorch":
        config = {name: value for name, value in config.items() if name != "device"}
    params = mlmodel.get_params_schema()
    return {**config, **{spec.name: spec.default for spec in params or ()}}


def _bind_settings(model: TrainedModel, settings: Settings, predict_fn: str) -> TrainedModel:
    """Return the model with the settings, which its converter applies or which are the
    defaults of its method. Raises ConversionError if an ONNX form cannot contain one of
    them.
    """
    if not settings:
        return model
    converter = converters.converter_for(model)
    if hasattr(converter, "asked_with"):
        return converter.asked_with(model, settings, predict_fn)
    method: Any = getattr(model, "forward", None) or getattr(model, "predict", None)
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # The method of a TorchScript module has no signature.
        parameters = inspect.signature(method).parameters
    value: Any
    for name, value in settings.items():
        if name not in parameters and "xgboost" in converters.packages_of(model):
            continue  # MLflow ignores this name.
        if name not in parameters or not np.array_equal(parameters[name].default, value):
            raise errors.ConversionError(
                f"MLflow asks it with {name}={value!r}, which an ONNX form cannot contain: log "
                "the version without it, or make it the default of the model"
            )
    return model


def _log_next_version(
    outcome: WrappedVersion, wrapped: WrappedModel, resolved: ResolvedModel, original: Original
) -> WrappedVersion:
    """Log the model to the original's run, register it, and copy the description and
    tags of the original.
    """
    client = registry_client()
    origin = _find_origin(client, resolved, original.mlmodel)
    origin_tags = {WRAPPED_FROM_TAG: resolved.source, PARITY_TAG: wrapped.report.state}
    model_id = None
    if has_logged_models(client):
        model_id = _create_logged_model(client, origin.logged, origin.run, origin_tags)
    metadata = original.mlmodel.metadata if original.mlmodel is not None else None
    version_tags = origin.version.tags if origin.version is not None else {}
    info = log_wrapped(
        replace(wrapped, provenance=_provenance(wrapped.provenance, origin.run)),
        registered_model_name=outcome.name,
        model_id=model_id,
        run_id=origin.run_id,
        metadata=metadata,
        tags=kept_tags(version_tags) | origin_tags,
    )
    if origin.run_id and model_id and origin.logged is not None:
        # MLflow has already copied some metrics.
        present = {
            (metric.key, metric.timestamp, metric.step)
            for metric in client.get_logged_model(model_id).metrics or ()
        }
        missing = [
            Metric(
                metric.key,
                metric.value,
                metric.timestamp,
                metric.step,
                model_id=model_id,
                dataset_name=metric.dataset_name,
                dataset_digest=metric.dataset_digest,
                run_id=origin.run_id,
            )
            for metric in origin.logged.metrics or ()
            if (metric.key, metric.timestamp, metric.step) not in present
        ]
        if missing:
            client.log_batch(origin.run_id, metrics=missing)
    version = str(info.registered_model_version)
    if origin.version is not None:
        description = with_description_section(origin.version.description or "", [])
        if description:
            client.update_model_version(outcome.name, version, description)
    return replace(outcome, version=version, model_id=model_id or "", run_id=info.run_id or "")


class _Origin(NamedTuple):
    """The records of the original on the MLflow server.

    Attributes:
        version: the registered version, or None.
        run: the active run that logged the original, or None.
        logged: the logged model, or None.
    """

    version: ModelVersion | None
    run: Run | None
    logged: LoggedModel | None

    @property
    def run_id(self) -> str | None:
        if self.run is None:
            return None
        return str(self.run.info.run_id)


def _find_origin(client: MlflowClient, resolved: ResolvedModel, mlmodel: Model | None) -> _Origin:
    """Return the records of the original. A run or logged model that cannot be read is
    None.
    """
    run_id = resolved.aspects.get("run_id") or getattr(mlmodel, "run_id", None) or ""
    model_id = resolved.aspects.get("model_id") or getattr(mlmodel, "model_id", None) or ""
    version = None
    if parse_model_uri(resolved.source).kind == "version":
        version = client.get_model_version(resolved.name, resolved.version)
    run = None
    logged = None
    with suppress(MlflowException):  # The run may be deleted, or on another MLflow server.
        run = client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            run = None
    with suppress(MlflowException):
        logged = client.get_logged_model(model_id)
    return _Origin(version, run, logged)


def _create_logged_model(
    client: MlflowClient, logged: LoggedModel | None, run: Run | None, origin_tags: dict[str, str]
) -> str:
    """Create a logged model with the name, tags and params of the original's logged
    model, otherwise with the params of its run. Return the id.

    Args:
        client: the client of the MLflow server.
        logged: the logged model of the original, or None.
        run: the run that logged the original, or None.
        origin_tags: the tags that describe the origin.
    """
    name = "model"
    model_type = None
    tags = {}
    if logged is not None:
        name = logged.name
        model_type = logged.model_type
        tags = logged.tags
        experiment_id = logged.experiment_id
        params = logged.params
    elif run is not None:
        experiment_id = run.info.experiment_id
        params = run.data.params
    else:
        experiment_id = mlflow_private._get_experiment_id()
        params = {}
    created = client.create_logged_model(
        experiment_id=experiment_id,
        name=name,
        source_run_id=run.info.run_id if run else None,
        tags=kept_tags(tags) | origin_tags,
        params=params,
        model_type=model_type,
    )
    return str(created.model_id)


def _provenance(provenance: Mapping[str, object], run: Run | None) -> dict[str, object]:
    """Return the provenance with the git commit and the dataset of the run that trained
    the model.
    """
    details = {name: value for name, value in provenance.items() if not name.startswith("git_")}
    if run is None:
        return details
    if commit := run.data.tags.get(GIT_COMMIT_TAG):
        details["git_commit"] = commit
    if inputs := run.inputs.dataset_inputs:
        dataset = inputs[-1].dataset
        details |= {"dataset_digest": dataset.digest, "dataset_name": dataset.name}
    return details


def load_folder(folder: Path, source: str) -> Original:
    """Load the model of an MLmodel folder, whose files may run code. Messages use the
    name `source`.

    Raises:
        InvalidArtifact: MLflow cannot read the MLmodel file.
        InvalidConfig: the model is wrapped already.
        CodeRefused: model code is switched off, and this MLflow cannot load only data.
        NotInstalled: the framework is missing.
        ConversionError: the model is Python code or a pyfunc with another method, or
            its files cannot be read.
    """
    if not (folder / MLMODEL).is_file():
        raise errors.InvalidArtifact(f"{source} is not a model: it has no MLmodel file")
    try:
        flavors = dict(read_mlmodel(folder).get("flavors", {}))  # without null entries
        mlmodel = Model.load(str(folder))
    except errors.InvalidArtifact as error:
        raise errors.InvalidArtifact(f"{source} is not a model: {error.message}") from None
    except Exception as error:  # noqa: BLE001 - an invalid file may raise any error.
        raise errors.InvalidArtifact(
            f"{source} is not a model: its MLmodel file is invalid: {error_summary(error)}"
        ) from None
    flavor, predict_fn = _framework_flavor(flavors, source)
    differences = version_differences(folder)
    if not hasattr(environment_variables, MODEL_CODE) and runs_code(read_mlmodel(folder), folder):
        require_model_code(source)  # MLflow 3.18 and newer refuses only files with code.
    try:
        converters.check_flavor(flavor)
        backend = flavors.get("keras", {}).get("keras_backend")
        if backend:
            os.environ.setdefault("KERAS_BACKEND", backend)  # Keras reads this on import.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Version differences are reported below.
            model = importlib.import_module(f"mlflow.{flavor}").load_model(str(folder))
        converters.converter_for(model)
    except errors.ConversionError as error:
        raise errors.ConversionError(
            f"{error.message}; {source} can be served as pyfunc without conversion"
        ) from error
    except Exception as error:
        converters.check_installed(error, source)
        raise errors.ConversionError(
            f"{source} cannot be loaded by mlflow.{flavor}: {load_failure(error, folder)}"
        ) from error
    notes = [
        f"it was logged with {difference}"
        for package, difference in differences.items()
        if package in _FRAMEWORKS
    ]
    return Original(folder, source, model, mlmodel, predict_fn, tuple(notes))


def _framework_flavor(flavors: Mapping[str, Any], source: str) -> tuple[str, PredictFunction]:
    """Return the flavor of the framework, and the method that its pyfunc calls. Raises
    InvalidConfig for a wrapped model, and ConversionError for Python code and for
    another method.
    """
    if FLAVOR in flavors:
        raise errors.InvalidConfig(f"{source} is wrapped already: it can be served as ONNX")
    pyfunc = flavors.get(PYTHON_FUNCTION, {})
    flavor = next((name for name in flavors if name != PYTHON_FUNCTION), "")
    default_loader = f"mlflow.{flavor}" if flavor else "mlflow.pyfunc.model"
    loader = str(pyfunc.get("loader_module", default_loader))
    if not flavor or not loader.startswith(f"mlflow.{flavor}"):
        if loader.startswith("mlflow.pyfunc."):
            code = "a custom Python class"
        else:
            code = f"custom Python code for {loader}"
        raise errors.ConversionError(
            f"{source} cannot be converted to ONNX: it is {code}; it can be served as pyfunc "
            "without conversion"
        )
    predict_fn = pyfunc.get("predict_fn", "predict")
    if predict_fn not in get_args(PredictFunction):
        raise errors.ConversionError(
            f"{source} cannot be converted to ONNX: its pyfunc calls {predict_fn!r}, and an ONNX "
            f"form supports only {' or '.join(get_args(PredictFunction))}; it can be served as "
            "pyfunc without conversion"
        )
    return flavor, predict_fn


def load_file(path: Path, allow_pickle: bool) -> Original:
    """Load a joblib or pickle file, or a file in the format of a framework.

    Raises:
        CodeRefused: the file is a joblib or pickle file, and `allow_pickle` is false or
            model code is switched off.
        InvalidConfig: the ending of the file is unknown.
        InvalidArtifact: a joblib or pickle file cannot be loaded.
        ConversionError: a file of a framework cannot be loaded.
        NotInstalled: the framework is missing.
    """
    ending = path.suffix.lower()
    if ending in converters.FILE_ENDINGS:
        return Original(path, str(path), converters.load_file(str(path)))
    if ending not in _PICKLES:
        endings = [*_FILE_ENDINGS, *(f".{name}" for name in registered_in(_FILES))]
        raise errors.InvalidConfig(
            f"{path} is not a model: the file name must end with {', '.join(endings)}; "
            "alternatively name a model in MLflow, or the folder of an MLmodel file"
        )
    require_model_code(str(path))
    if not allow_pickle:
        raise errors.CodeRefused(
            f"{path} can run any code while it is loaded; if you trust its author, pass "
            "--allow-pickle (in Python allow_pickle=True)"
        )
    import joblib  # joblib is optional (installed with scikit-learn), and also reads plain pickles.

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = joblib.load(path)
        except Exception as error:
            converters.check_installed(error, str(path))
            raise errors.InvalidArtifact(
                f"{path} cannot be loaded as a joblib or pickle file: {error_summary(error)}"
            ) from error
    kind = type(model)
    if kind.__module__.partition(".")[0] in ("builtins", "numpy", "pandas", "scipy"):
        raise errors.InvalidArtifact(
            f"{path} does not contain a model, but an object of type {kind.__name__}: save only "
            "the fitted model in the file"
        )
    versions = {
        f"it was saved by scikit-learn {warning.message.original_sklearn_version} "  # type: ignore[union-attr]
        f"({warning.message.current_sklearn_version} is installed)"  # type: ignore[union-attr]
        for warning in caught
        if warning.category.__name__ == "InconsistentVersionWarning"
    }
    return Original(path, str(path), model, warnings=tuple(sorted(versions)))
