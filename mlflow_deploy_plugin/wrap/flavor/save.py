"""The flavor's public functions, which follow MLflow's conventions, and its pyfunc.

Predictions have the same type as in the framework's MLflow flavor: usually an array.
Models of torch, ONNX, Keras and statsmodels return a DataFrame (or Series) for a
DataFrame. Several outputs are returned as a mapping of arrays.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import mlflow
import mlflow.data
import numpy as np
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.utils.logging_utils import eprint
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    InvalidConfig,
    OnnxserveError,
    ParityError,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR
from mlflow_deploy_plugin.core.model_code import model_code_is_allowed
from mlflow_deploy_plugin.core.registry.model_files import open_repository
from mlflow_deploy_plugin.core.registry.resolution import PARITY_TAG
from mlflow_deploy_plugin.core.registry.runs import log_flavor
from mlflow_deploy_plugin.core.signatures import Signer
from mlflow_deploy_plugin.core.spec.parts import Device
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import Placement, available_cores
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, as_pandas
from mlflow_deploy_plugin.wrap.convert.conversion_errors import pyfunc_flavor, with_alternative
from mlflow_deploy_plugin.wrap.convert.converted import TrainedModel
from mlflow_deploy_plugin.wrap.convert.converters import load_file
from mlflow_deploy_plugin.wrap.evaluation.explanation import explain as explain_rows
from mlflow_deploy_plugin.wrap.evaluation.explanation import require_plots
from mlflow_deploy_plugin.wrap.flavor import saved_model
from mlflow_deploy_plugin.wrap.flavor.python_model import LogOptions, log_as_pyfunc, reason_line
from mlflow_deploy_plugin.wrap.flavor.saved_model import EXAMPLE_ROWS, OWN_DATASET, WrappedModel
from mlflow_deploy_plugin.wrap.flavor.signing import sign_version
from mlflow_deploy_plugin.wrap.flavor.wrap import (
    EventTimes,
    ParityPolicy,
    PredictFunction,
    WrapOptions,
    check_choice,
    without_times,
    wrap,
)

_ANSWER_TABLES = ("torch", "onnx", "keras", "statsmodels")
"""The frameworks whose MLflow pyfunc returns a table for an input table."""

Fallback = Literal["pyfunc", "error"]

_logger = logging.getLogger("mlflow_deploy_plugin.wrap")


def save_model(
    model: TrainedModel,
    path: str | Path,
    *,
    signature: ModelSignature | None = None,
    input_example: ModelData = None,
    pyfunc_predict_fn: PredictFunction = "predict",
    parity: ParityPolicy = "require",
    parity_data: ModelData = None,
    reference_data: ModelData = None,
    event_time: EventTimes = None,
    mlflow_model: Model | None = None,
    metadata: Mapping[str, object] | None = None,
    conda_env: str | Mapping[str, object] | None = None,
    pip_requirements: str | list[str] | None = None,
    extra_pip_requirements: str | list[str] | None = None,
    code_paths: list[str] | None = None,
) -> None:
    """Convert `model` to ONNX, check that the predictions are the same, and save the
    ONNX model to the folder `path`.

    Args:
        model: a fitted scikit-learn estimator or pipeline, a torch module, an ONNX
            model or the path of its file.
        path: a folder that does not exist or is empty.
        signature: MLflow's signature; default: names, order and types are inferred from
            the example.
        input_example: rows of the model's input: a DataFrame, an array, or tensors by
            name. All rows are used for the proof and the reference; the first five are
            saved as MLflow's input example.
        pyfunc_predict_fn: the method that `predict` corresponds to: "predict" or
            "predict_proba".
        parity: "require" raises ParityError if the predictions differ; "warn" saves the
            model in the state `warned`.
        parity_data: additional real rows for the proof.
        reference_data: rows with which drift monitors compare traffic; default: the
            example.
        event_time: the time of each row of the reference: the name of a column, or one
            time per row.
        mlflow_model: the MLmodel to which the flavor is added; default: a new one.
        metadata: entries for `metadata` in the MLmodel file.
        conda_env: the conda environment as a mapping, or the path of its file; default:
            made from the requirements.
        pip_requirements: the requirements; default: those of a server of this model.
        extra_pip_requirements: requirements in addition to the default ones.
        code_paths: Python files or folders that the model imports; they are copied into
            the artifact.

    Raises:
        ConversionError: a part of the model cannot be converted; the message names this
            part.
        ParityError: the ONNX form gives other answers; the message contains the worst
            rows.
        InvalidConfig: an argument is invalid; the message names the argument.
    """
    options = WrapOptions(
        signature=signature,
        predict_fn=pyfunc_predict_fn,
        parity=parity,
        parity_data=parity_data,
        reference_data=reference_data,
        event_time=event_time,
    )
    model = load_file(model)
    try:
        wrapped = wrap(model, input_example, options)
    except (ConversionError, ParityError) as error:
        raise with_alternative(error, model, pyfunc_predict_fn) from (error.__cause__ or error)
    saved_model.save_model(
        path,
        wrapped,
        mlflow_model,
        metadata=metadata,
        conda_env=conda_env,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        code_paths=code_paths,
    )


def log_model(
    model: TrainedModel,
    name: str | None = None,
    *,
    registered_model_name: str | None = None,
    signature: ModelSignature | None = None,
    input_example: ModelData = None,
    pyfunc_predict_fn: PredictFunction = "predict",
    parity: ParityPolicy = "require",
    fallback: Fallback = "pyfunc",
    parity_data: ModelData = None,
    reference_data: ModelData = None,
    event_time: EventTimes = None,
    explain: bool = False,
    await_registration_for: int | None = mlflow_private.DEFAULT_AWAIT_MAX_SLEEP_SECONDS,
    metadata: Mapping[str, object] | None = None,
    conda_env: str | Mapping[str, object] | None = None,
    pip_requirements: str | list[str] | None = None,
    extra_pip_requirements: str | list[str] | None = None,
    code_paths: list[str] | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    sign: str | Signer | None = None,
) -> ModelInfo:
    """Log `model` to MLflow as checked ONNX, and register it if `registered_model_name`
    is set.

    The model is converted and compared as in `save_model`, with the same arguments and
    errors; it is logged only if both steps succeed. The parity state is set as the tag
    `onnxserve.parity` of the active run, the logged model and the registered version.
    The metrics of the proof are logged to the run (`onnxserve.parity.…`). The reference
    data, or the example if there are none, is logged as a dataset input of the run.

    Args:
        model: a fitted scikit-learn estimator or pipeline, a torch module, an ONNX
            model or the path of its file.
        name: the name of the logged model.
        registered_model_name: the registered model to which a version is added;
            default: the model is not registered.
        signature: MLflow's signature; default: names, order and types are inferred from
            the example.
        input_example: rows of the model's input: a DataFrame, an array, or tensors by
            name. All rows are used for the proof and the reference; the first five are
            saved as MLflow's input example.
        pyfunc_predict_fn: the method that `predict` corresponds to: "predict" or
            "predict_proba".
        parity: "require" raises ParityError if the predictions differ; "warn" saves the
            model in the state `warned`.
        fallback: the behaviour if the conversion or the comparison fails. "pyfunc": log
            the model with its MLflow flavor, so that it is served as pyfunc, with the
            reason in a warning and in the tag `onnxserve.fallback`. "error": raise the
            error.
        parity_data: additional real rows for the proof.
        reference_data: rows with which drift monitors compare traffic; default: the
            example.
        event_time: the time of each row of the reference: the name of a column, or one
            time per row.
        explain: explain up to 100 rows of the reference, and log contributions, column
            importances and SHAP plots to the run, under `explain/`. If this fails, the
            model is logged with a warning.
        await_registration_for: seconds to wait until the new version is ready; 0 or
            None: no wait.
        metadata: entries for `metadata` in the MLmodel file.
        conda_env: the conda environment as a mapping, or the path of its file; default:
            made from the requirements.
        pip_requirements: the requirements; default: those of a server of this model.
        extra_pip_requirements: requirements in addition to the default ones.
        code_paths: Python files or folders that the model imports; they are copied into
            the artifact.
        params: parameters of the logged model.
        tags: tags of the logged model.
        model_type: a category for the logged model, such as "agent", as in MLflow.
        step: the training step to which the logged model belongs.
        model_id: the logged model that receives the files; default: a new logged model.
        sign: the key that signs all files, as for `onnxserve sign`; default: the model
            is not signed.

    Raises:
        NotInstalled: `explain` is set, and shap or matplotlib is not installed; or
            `sign` is set, and model-signing is not installed.
    """
    check_choice("fallback", fallback, Fallback)
    if explain:
        require_plots()
        if input_example is None and reference_data is None:
            raise InvalidConfig(
                "explain: there are no rows to explain; pass input_example= or reference_data="
            )
    signer = Signer(sign) if isinstance(sign, str) else sign
    if signer is not None:
        signer.check_key()
    options = WrapOptions(
        signature=signature,
        predict_fn=pyfunc_predict_fn,
        parity=parity,
        parity_data=parity_data,
        reference_data=reference_data,
        event_time=event_time,
        progress=eprint,
    )
    mlflow_options: LogOptions = {
        "name": name,
        "registered_model_name": registered_model_name,
        "await_registration_for": await_registration_for,
        "metadata": metadata,
        "conda_env": conda_env,
        "pip_requirements": pip_requirements,
        "extra_pip_requirements": extra_pip_requirements,
        "code_paths": code_paths,
        "params": dict(params or {}),
        "tags": dict(tags or {}),
        "model_type": model_type,
        "step": step,
        "model_id": model_id,
    }
    model = load_file(model)
    input_example = as_pandas(input_example)
    try:
        wrapped = wrap(model, input_example, options)
    except (ConversionError, ParityError) as error:
        flavor = None
        if fallback == "pyfunc":
            flavor = pyfunc_flavor(model, pyfunc_predict_fn, input_example)
        if flavor is None:
            raise with_alternative(error, model, pyfunc_predict_fn) from (error.__cause__ or error)
        if explain:
            _logger.warning("the model is not explained: it has no ONNX form")
        flavor_name, flavor_options = flavor
        mlflow_options = {"signature": signature, **flavor_options, **mlflow_options}
        example = without_times(input_example, event_time)
        reference = without_times(as_pandas(reference_data), event_time)
        other_data = [as_pandas(parity_data), reference]
        info = log_as_pyfunc(model, error, flavor_name, example, other_data, mlflow_options)
        _log_dataset(info.run_id, example if reference is None else reference)
        reason = getattr(error, "brief", "") or reason_line(error)
        _sign_and_report(info, registered_model_name, signer, f"pyfunc, not ONNX: {reason}")
        return info
    eprint("Logging the model to MLflow.")
    info = log_wrapped(wrapped, **mlflow_options)
    _log_dataset(info.run_id, wrapped.data)
    proof: str = wrapped.report.state
    if wrapped.report.rows:
        proof = f"{proof} on {wrapped.report.rows:,} rows"
    _sign_and_report(info, registered_model_name, signer, f"ONNX: {proof}")
    if explain:
        try:
            explain_rows(info.model_uri, "reference", log=True)
        except OnnxserveError as error:  # Do not raise: a retry would log the model again.
            _logger.warning("the model is logged, but not explained: %s", error.message)
    return info


def _sign_and_report(
    info: ModelInfo, registered_name: str | None, signer: Signer | None, outcome: str
) -> None:
    """Sign the registered version or logged model, and print the outcome."""
    logged = info.name
    model_uri = info.model_uri
    if registered_name:
        logged = f"{registered_name} version {info.registered_model_version}"
        model_uri = f"models:/{registered_name}/{info.registered_model_version}"
    if signer is not None:
        sign_version(model_uri, signer)
    eprint(f"Logged {logged} as {outcome}.")


def log_wrapped(
    wrapped: WrappedModel, tags: Mapping[str, object], **mlflow_options: Any
) -> ModelInfo:
    """Log a wrapped model to MLflow, with its parity metrics. The options are those of
    `log_flavor`.
    """
    state = wrapped.report.state
    tags = {**tags, PARITY_TAG: state}
    info = log_flavor(
        saved_model,
        flavor_name=FLAVOR,
        wrapped=wrapped,
        tags=tags,
        # To validate the example, MLflow would load the model as a pyfunc.
        validate_serving_input=model_code_is_allowed(),
        **mlflow_options,
    )
    if info.run_id:
        mlflow.log_metrics(wrapped.report.metrics(), run_id=info.run_id, model_id=info.model_id)
        mlflow.MlflowClient().set_tag(info.run_id, PARITY_TAG, state)
    return info


def _log_dataset(run_id: str | None, data: ModelData) -> None:
    """Log the data of a model as a dataset input of its run, unless the run already has
    this input. If this fails, log a warning.
    """
    if run_id is None or data is None:
        return
    client = mlflow.MlflowClient()
    try:
        batch = data if isinstance(data, Batch) else Batch.read(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow warns about integer columns.
            inputs = client.get_run(run_id).inputs.dataset_inputs
            # MLflow's own digest of the same rows is compared too, because MLflow may
            # have logged them.
            digests = {entry.dataset.digest for entry in inputs}
            make = mlflow.data.from_pandas if batch.is_table else mlflow.data.from_numpy
            digest = batch.digest()
            if digest in digests or (digests and make(batch.unnamed).digest in digests):
                dataset = None
            else:
                # Only the first rows: MLflow needs 15 s to infer the schema from 1
                # million rows.
                head = batch.take(slice(0, EXAMPLE_ROWS))
                dataset = make(head.unnamed, name=OWN_DATASET, digest=digest)
                entity = dataset._to_mlflow_entity().to_dictionary()
                entity["profile"] = json.dumps({"num_rows": len(batch)})
                dataset = Dataset.from_dictionary(entity)
        if dataset is not None:
            context = InputTag(MLFLOW_DATASET_CONTEXT, "training")
            client.log_inputs(run_id, [DatasetInput(dataset, [context])])
    except Exception as error:  # noqa: BLE001 - MLflow's encoders may raise any error.
        _logger.warning(
            "the data of the model could not be logged as an input of its run: %s", one_line(error)
        )


def load_model(model_uri: str, device: Device = "cpu", intra_op_num_threads: int = 1) -> OnnxModel:
    """Load a saved model into this process. Raises InvalidArtifact if its files cannot
    be used, and MLflow's errors if they cannot be downloaded.

    Args:
        model_uri: any MLflow model URI, such as models:/flight-delay@champion, or a
            folder.
        device: "cpu" or "cuda".
        intra_op_num_threads: the threads of one run of the graph.
    """
    repository, path = open_repository(model_uri)
    folder = Path(repository.download_artifacts(path))
    return OnnxModel.load(folder, Placement(device), intra_op_num_threads)


class PyfuncModel:
    """A loaded model with MLflow's `predict` interface."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    def get_raw_model(self) -> OnnxModel:
        return self._model

    def predict(self, data: ModelData, params: Mapping[str, object] | None = None) -> ModelData:
        """Predict for a DataFrame, array, mapping, or list of rows or records. Raises
        SchemaMismatch for other data.
        """
        schema = self._model.schema
        feeds: Feeds
        if isinstance(data, pd.DataFrame):
            table = data
            if len(schema.columns) == data.shape[1] == 1:  # MLflow has checked the column's name.
                table = data.set_axis(list(schema.names), axis=1)
            if schema.columns or len(schema.tensors) > 1:
                feeds = Batch(table).feeds(schema)
            else:
                feeds = schema.from_array(table.to_numpy())
        elif isinstance(data, Mapping):
            columns = dict(data)
            for name, values in data.items():
                if not isinstance(values, np.ndarray | list | tuple):
                    columns[name] = np.asarray(values)
            feeds = schema.from_columns(columns)
        elif isinstance(data, list) and data and isinstance(data[0], Mapping):
            feeds = schema.from_records(data)
        else:
            feeds = schema.from_array(data)
        prediction = self._model.prediction(self._model.run(feeds, self._model.artifact.prediction))
        framework = self._model.artifact.framework
        if not isinstance(data, pd.DataFrame) or framework not in _ANSWER_TABLES:
            return prediction
        if isinstance(prediction, dict) or prediction.ndim > 2:
            return prediction
        if framework == "statsmodels" and prediction.ndim == 1:
            return pd.Series(prediction, index=data.index)
        return pd.DataFrame(prediction, index=data.index)


def _load_pyfunc(path: str, model_config: Mapping[str, object] | None = None) -> PyfuncModel:
    """Load the model in a folder for MLflow. Raises InvalidConfig for an unknown
    `device` in `model_config`.
    """
    config = saved_model.DEFAULT_CONFIG | dict(model_config or {})
    try:
        placement = Placement(cast(Device, str(config["device"])))
    except InvalidConfig as error:
        raise InvalidConfig(f"model_config: {error.message}") from None
    configured = cast(int | None, config["intra_op_num_threads"])
    threads = int(configured or available_cores())
    return PyfuncModel(OnnxModel.load(Path(path), placement, threads))
