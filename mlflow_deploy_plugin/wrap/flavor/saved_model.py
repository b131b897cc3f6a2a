"""The folder of a saved model. This module is passed to `mlflow.models.Model.log`,
which calls `save_model`.
"""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, distribution, distributions, version
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.utils.file_utils import get_total_file_size

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, MLMODEL
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.inference_log.tables import TIME, nested_lists
from mlflow_deploy_plugin.serve.runtime.feeds import Array, sample_positions
from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData
from mlflow_deploy_plugin.wrap.convert.converted import ConvertedModel
from mlflow_deploy_plugin.wrap.convert.onnx_file import ONNX_FILE, write_graph
from mlflow_deploy_plugin.wrap.flavor.parity import ParityReport, refusals_of

LOCK_FILE = "requirements.lock"
PARITY_FILE = "parity.json"
REFERENCE_FILE = "reference.parquet"
OWN_DATASET = "reference"
"""The name of the dataset that `log_model` logs to a run."""

EXAMPLE_ROWS = 5
"""The number of rows of the user's example that are saved as MLflow's input example."""
MAX_REFERENCE_ROWS = 100_000
MAX_REFERENCE_VALUES = 20_000_000
"""The maximum number of values in a sample of tensors: images are large, and drift
monitors need few images.
"""

DEFAULT_CONFIG = {"device": "cpu", "intra_op_num_threads": None}
"""The options of `mlflow.pyfunc.load_model(uri, model_config=…)`. By default, all
usable cores are used.
"""

_LOADER = "mlflow_deploy_plugin"
_CHUNK = 10_000
_MOST_LISTED = 250
"""The maximum number of saved categories per column, from which a user can select in a
form.
"""


@dataclass(frozen=True)
class WrappedModel:
    """A model that is ready to be saved.

    Attributes:
        predict_fn: the method of the original that `predict` corresponds to.
        example: the first rows of the user's example in the form that MLflow saves, or
            None without an example.
        data: all rows of the reference data or, without reference data, of the example.
        reference: the reference sample, or None without data.
    """

    converted: ConvertedModel
    signature: ModelSignature
    predict_fn: str
    report: ParityReport
    example: ModelData
    data: Batch | None
    reference: pa.Table | None
    provenance: Mapping[str, object]
    lock: str


def save_model(
    path: str | Path,
    wrapped: WrappedModel,
    mlflow_model: Model | None = None,
    *,
    metadata: Mapping[str, object] | None = None,
    conda_env: str | Mapping[str, object] | None = None,
    pip_requirements: str | list[str] | None = None,
    extra_pip_requirements: str | list[str] | None = None,
    code_paths: list[str] | None = None,
    validate_serving_input: bool = True,
) -> None:
    """Write the model, its proofs and its environment.

    Args:
        path: a folder that is empty or does not exist.
        wrapped: the model.
        mlflow_model: the MLmodel to which the flavor is added; default: a new one.
        metadata: entries for `metadata` in the MLmodel file.
        conda_env: the conda environment as a mapping, or the path of its file; default:
            made from the requirements.
        pip_requirements: the requirements; default: those of a server of this model.
        extra_pip_requirements: requirements in addition to the default ones.
        code_paths: Python files or folders that are copied into the folder.
        validate_serving_input: read only by `mlflow.models.Model.log`.
    """
    mlflow_private._validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    mlflow_private._validate_and_prepare_target_save_path(str(path))
    folder = Path(path)
    code = mlflow_private._validate_and_copy_code_paths(code_paths, str(folder))
    model = mlflow_model if mlflow_model is not None else Model()
    model.signature = wrapped.signature
    if metadata is not None:
        model.metadata = dict(metadata)
    if wrapped.example is not None:
        mlflow_private._save_example(model, wrapped.example, str(folder))
    pyfunc.add_to_model(
        model,
        loader_module=_LOADER,
        conda_env=mlflow_private._CONDA_ENV_FILE_NAME,
        python_env=mlflow_private._PYTHON_ENV_FILE_NAME,
        model_config=DEFAULT_CONFIG,
        code=code,  # `predict_fn` is omitted: the onnxserve flavor names the outputs of `predict`.
    )
    model.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=ONNX_FILE,
        providers=["CPUExecutionProvider"],
        onnx_session_options=None,
        code=code,
    )
    (folder / PARITY_FILE).write_text(
        json.dumps(wrapped.report.as_dict(), indent=2, allow_nan=False) + "\n"
    )
    (folder / LOCK_FILE).write_text(wrapped.lock)
    if wrapped.reference is not None:
        pq.write_table(wrapped.reference, folder / REFERENCE_FILE, compression="zstd")
    write_mlmodel(folder, model, wrapped.converted, wrapped.predict_fn, _proofs(wrapped))
    model.model_size_bytes = get_total_file_size(str(folder))
    model.save(str(folder / MLMODEL))
    if conda_env is None:
        defaults = None
        if pip_requirements is None:
            # MLflow would infer the requirements in a second process, and with the
            # training framework, which serving does not need.
            onnxruntime = f"onnxruntime=={import_onnxruntime().__version__}"
            defaults = [own_requirement("[cpu]"), onnxruntime]
            if wrapped.converted.tokenizer is not None:
                tokenizers = f"tokenizers=={version('tokenizers')}"
                defaults = [own_requirement("[cpu,text]"), onnxruntime, tokenizers]
        processed = mlflow_private._process_pip_requirements(
            defaults, pip_requirements, extra_pip_requirements
        )
    else:
        processed = mlflow_private._process_conda_env(conda_env)
    _write_environment(folder, *processed)


def _proofs(wrapped: WrappedModel) -> dict[str, object]:
    """Return the sections of the MLmodel file that describe the proof and its data."""
    proofs: dict[str, object] = {
        "parity": wrapped.report.figures(),
        "provenance": dict(wrapped.provenance),
    }
    if wrapped.reference is not None:
        event_times = {}
        if EVENT_TIME in wrapped.reference.column_names:
            ends = pc.min_max(wrapped.reference[EVENT_TIME])
            times = {"begin": ends["min"].as_py(), "end": ends["max"].as_py()}
            event_times = {
                name: time.isoformat() for name, time in times.items() if time is not None
            }
        proofs["reference"] = {
            "data": REFERENCE_FILE,
            "rows": wrapped.reference.num_rows,
            **event_times,
        }
    boundary_values = wrapped.converted.boundary_values
    refused = refusals_of(wrapped.report, boundary_values)
    if refused:
        proofs["refused"] = refused
    # A user selects from these categories in a form.
    categories = {}
    for name, values in boundary_values.categories.items():
        texts = [str(value) for value in values if isinstance(value, str)]
        if 0 < len(texts) <= _MOST_LISTED:
            categories[name] = texts
    if categories:
        proofs["categories"] = categories
    return proofs


def _write_environment(
    folder: Path, conda: Mapping[str, object], requirements: list[str], constraints: list[str]
) -> None:
    """Write the files from which MLflow creates an environment for the model."""
    (folder / mlflow_private._CONDA_ENV_FILE_NAME).write_text(
        yaml.safe_dump(conda, default_flow_style=False)
    )
    if constraints:
        (folder / mlflow_private._CONSTRAINTS_FILE_NAME).write_text("\n".join(constraints))
    (folder / mlflow_private._REQUIREMENTS_FILE_NAME).write_text("\n".join(requirements))
    mlflow_private._PythonEnv.current().to_yaml(str(folder / mlflow_private._PYTHON_ENV_FILE_NAME))


def own_requirement(extras: str = "", files: Distribution | None = None) -> str:
    """Return the pip requirement of this package: its version, or its commit if it was
    installed from a repository.

    Args:
        extras: the extras in brackets, such as "[cpu]".
        files: the distribution; default: the installed one.
    """
    name = f"mlflow-onnxserve{extras}"
    package = files or distribution("mlflow-onnxserve")
    origin = json.loads(package.read_text("direct_url.json") or "{}")  # PEP 610
    repository = origin.get("vcs_info")
    if repository:
        return f"{name} @ {repository['vcs']}+{origin['url']}@{repository['commit_id']}"
    return f"{name}=={__version__}"


def write_mlmodel(
    folder: Path,
    model: Model,
    converted: ConvertedModel,
    predict_fn: str,
    proofs: Mapping[str, object],
) -> None:
    """Write the files that `serve.runtime.model.OnnxModel` reads. Raises
    ConversionError if the graph is too large.

    Args:
        folder: the folder of the model.
        model: the MLmodel to which the flavor is added.
        converted: the ONNX form.
        predict_fn: the method of the original that `predict` corresponds to.
        proofs: further sections of the flavor.
    """
    digests = write_graph(folder, converted.proto)
    for name, text_or_bytes in converted.files.items():
        content = text_or_bytes
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)
        digests[name] = f"sha256:{hashlib.sha256(content).hexdigest()}"
    sections: dict[str, object] = {}
    if converted.unread:
        sections["unread"] = list(converted.unread)
    if converted.tokenizer is not None:
        spec = converted.tokenizer
        sections["tokenizer"] = asdict(spec) | {"file": spec.file.name}
    inputs = []
    for entry in converted.inputs:
        described: dict[str, object] = {
            "name": entry.name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
        }
        if entry.columns:
            described["columns"] = list(entry.columns)
        if entry.missing is not None:
            described["missing"] = entry.missing
        inputs.append(described)
    model.add_flavor(
        FLAVOR,
        data=ONNX_FILE,
        digests=digests,  # The agent verifies the digests after a download.
        onnxserve_version=__version__,
        framework=converted.framework,
        framework_version=converted.framework_version,
        inputs=inputs,
        outputs=[asdict(output) | {"shape": list(output.shape)} for output in converted.outputs],
        prediction=list(converted.prediction),
        classes=list(converted.classes),
        predict_fn=predict_fn,
        **sections,
        **proofs,
    )
    model.save(str(folder / MLMODEL))


def environment_lock() -> str:
    """Return the installed packages in the format of `pip install -r`: sorted lines
    with `name==version`.
    """
    installed = {}
    for package in distributions():  # `version` parses the full metadata: 20 times as slow.
        metadata = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
        head, _, _ = metadata.partition("\n\n")
        fields = dict(re.findall(r"^(Name|Version): *(\S+)", head, re.MULTILINE))
        if "Name" in fields and "Version" in fields:
            key = fields["Name"].lower().replace("_", "-")
            installed[key] = f"{fields['Name']}=={fields['Version']}"
    return "".join(f"{installed[name]}\n" for name in sorted(installed))


def provenance_section(batch: Batch | None, lock: str) -> dict[str, object]:
    """Return the git commit, the environment, and the digest of the run's dataset or,
    without a dataset, of `batch`.
    """
    dataset = {}
    if batch is not None:
        dataset = {"dataset_digest": batch.digest(), "dataset_name": OWN_DATASET}
    # The last dataset that the user logged to the run has priority.
    run = mlflow.active_run()
    if run is not None:
        inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
        datasets = [entry.dataset for entry in inputs if entry.dataset.name != OWN_DATASET]
        if datasets:
            dataset |= {"dataset_digest": datasets[-1].digest, "dataset_name": datasets[-1].name}
    commit = _git("rev-parse", "HEAD")
    is_dirty = None
    if commit:
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    section = {
        "git_commit": commit,
        "git_dirty": is_dirty,
        **dataset,
        "environment": LOCK_FILE,
        "environment_digest": hashlib.sha256(lock.encode()).hexdigest()[:16],
        "python_version": platform.python_version(),
    }
    return {name: value for name, value in section.items() if value not in (None, "")}


def _git(*arguments: str) -> str | None:
    """Return the output of git, or None if git fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def sample_reference(model: OnnxModel, data: Batch, times: Array | None) -> pa.Table:
    """Return a uniform sample of the rows with the saved model's predictions, as the
    reference for drift monitors.

    Outputs without one entry per row are omitted. `times` [N] (datetime64, UTC) are
    stored as the column `_event_time`.
    """
    max_rows = min(MAX_REFERENCE_ROWS, max(MAX_REFERENCE_VALUES // max(data.row_size, 1), 1))
    if len(data) > max_rows:
        positions = sample_positions(len(data), max_rows, 0)
        data = data.take(positions)
        if times is not None:
            times = times[positions]
    parts = []
    for rows in data.chunks(_CHUNK):
        feeds = rows.feeds(model.schema)
        outputs = {
            name: array
            for name, array in model.run(feeds).items()
            if array.shape[:1] == (len(rows),)
        }
        parts.append(to_log_columns(model.schema, model.artifact.prediction, feeds, outputs))
    columns = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts if name in part]
        if len(arrays) == len(parts):
            joined = np.concatenate(arrays)
            columns[name] = nested_lists(pa.array(joined.reshape(-1)), joined.shape)
    if times is not None:
        columns[EVENT_TIME] = pa.array(times.astype("datetime64[us]")).cast(TIME)
    return pa.table(columns)
