"""The training reference of a version: the sample of its training rows that the flavor saved beside the model."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.monitoring.drift.references.rows import ReferenceRows, event_times
from mlflow_deploy_plugin.registry import download, registry_address, resolve
from mlflow_deploy_plugin.runtime import Artifact, read_artifact
from mlflow_deploy_plugin.statedir import WANTED, Wanted, read_state

_FILE = "reference.parquet"
_MODEL_ID = "model_id"
_NO_TIMES = (
    "the model's reference has no event times, so there are no windows to compare with; "
    "log the model with event_time=, the column (or the values) that say when each row happened"
)


def load_training_rows(state_dir: Path, model: str, version: str, cache: Path | None = None) -> ReferenceRows:
    """Return the reference of a version: from this disk if its server has it, else from MLflow.

    Args:
        state_dir: the state folder of the server, which may be gone.
        cache: where what comes from MLflow is kept for the next time; None: nowhere.

    Raises:
        NotFound: neither the server nor the registry has the version.
        InvalidArtifact: the model has no reference, or it cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    shown = f"model {model} version {version}"
    served = _served(state_dir, model, version)
    if served:
        return _of_model(served, shown)
    resolved = resolve(_model_uri(model, version))
    identity = f"{registry_address()} {resolved.identity}"
    kept = cache / hashlib.sha256(identity.encode()).hexdigest()[:32] if cache else None
    if kept and (kept / _FILE).is_file():
        return _read(kept / _FILE, (kept / _MODEL_ID).read_text(), shown)
    with tempfile.TemporaryDirectory(prefix="onnxserve-reference-") as temporary:
        folder = download(resolved.source, Path(temporary))
        rows = _of_model(folder, shown)
        if kept:
            _keep(_reference_of(read_artifact(folder), shown), rows.model_id, kept)
        return rows


@contextmanager
def model_folder(state_dir: Path, model: str, version: str) -> Iterator[Path]:
    """Yield the version's files: those that its server has, else a copy from the registry for the time of the block.

    Raises:
        NotFound: neither has it.
        RegistryUnavailable: MLflow does not answer.
    """
    served = _served(state_dir, model, version)
    if served:
        yield served
        return
    with tempfile.TemporaryDirectory(prefix="onnxserve-reference-") as temporary:
        yield download(resolve(_model_uri(model, version)).source, Path(temporary))


def _served(state_dir: Path, model: str, version: str) -> Path | None:
    """Return the folder in which the server of the state folder has, or had, the version."""
    wanted = read_state(state_dir / WANTED, Wanted)
    for endpoint in wanted.endpoints.values() if wanted else ():
        for variant in endpoint.variants.values():
            if (variant.model, variant.version) == (model, version) and variant.folder.is_dir():
                return variant.folder
    return None


def _of_model(folder: Path, shown: str) -> ReferenceRows:
    artifact = read_artifact(folder)
    return _read(_reference_of(artifact, shown), artifact.model_id, shown)


def _reference_of(artifact: Artifact, shown: str) -> Path:
    """Return the file of the reference."""
    if artifact.reference is None:
        raise InvalidArtifact(
            f"{shown} has no reference to compare with; log it with mlflow_deploy_plugin.log_model, "
            "which keeps a sample of the data (reference_data=, event_time=)"
        )
    path = artifact.folder / artifact.reference
    if not path.resolve().is_relative_to(artifact.folder.resolve()):
        raise InvalidArtifact(f"{shown} names the reference {artifact.reference!r}, which lies outside of the model")
    return path


def _read(path: Path, model_id: str, shown: str) -> ReferenceRows:
    try:
        table = pq.read_table(path)
        times = event_times(table)
    except FileNotFoundError:
        raise InvalidArtifact(f"{shown} lacks its reference {path.name!r}") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidArtifact(f"the reference {path.name!r} of {shown} cannot be read: {error}") from None
    notes = () if times is not None else (_NO_TIMES,)
    return ReferenceRows(table, times, model_id, f"the reference of {shown}", notes)


def _keep(reference: Path, model_id: str, kept: Path) -> None:
    """Keep the file for the next time; if the disk takes nothing, that costs only the next download."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as temporary:
            part = Path(temporary, "kept")
            part.mkdir()
            shutil.copyfile(reference, part / _FILE)
            (part / _MODEL_ID).write_text(model_id)
            os.rename(part, kept)  # fails where another has kept it meanwhile
    except OSError:
        return


def _model_uri(model: str, version: str) -> str:
    if version.isdigit():
        return f"models:/{model}/{version}"
    if version.startswith("m-"):
        return f"models:/{version}"
    raise NotFound(f"model {model} version {version} is not served any more and is in no registry")
