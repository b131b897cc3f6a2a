"""The reference of a version: the sample of its training rows that the flavor saved beside the model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.monitoring.features import Array
from mlflow_deploy_plugin.registry.download import download
from mlflow_deploy_plugin.registry.resolve import resolve
from mlflow_deploy_plugin.runtime.artifact import Artifact, read_artifact
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME
from mlflow_deploy_plugin.server.state import WANTED, Wanted, read_state


@dataclass(frozen=True, eq=False)
class ReferenceRows:
    """The reference of one version.

    Attributes:
        times: [N] int64, microseconds since 1970; None where the model was logged without event times.
        model_id: the logged model, for links in MLflow; empty where the model was never logged.
    """

    table: pa.Table
    times: Array | None
    model_id: str


def load_reference(state_dir: Path, model: str, version: str) -> ReferenceRows:
    """The reference of a version: from this disk where its server has it, else from MLflow.

    Args:
        state_dir: the state folder of the server, which may be gone.

    Raises:
        NotFound: neither the server nor the registry has the version.
        InvalidArtifact: the model has no reference, or it cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    with model_folder(state_dir, model, version) as folder:
        artifact = read_artifact(folder)
        if artifact.reference is None:
            raise InvalidArtifact(
                f"model {model} version {version} has no reference to compare with; log it with "
                "mlflow_deploy_plugin.log_model, which keeps a sample of the data (reference_data=, event_time=)"
            )
        return _read(artifact, artifact.reference, f"model {model} version {version}")


@contextmanager
def model_folder(state_dir: Path, model: str, version: str) -> Iterator[Path]:
    """The files of a version, for as long as they are needed; raises what `load_reference` raises."""
    wanted = read_state(state_dir / WANTED, Wanted)
    for endpoint in wanted.endpoints.values() if wanted else ():
        for variant in endpoint.variants.values():
            if (variant.model, variant.version) == (model, version) and variant.folder.is_dir():
                yield variant.folder
                return
    with tempfile.TemporaryDirectory(prefix="onnxserve-reference-") as temporary:
        yield download(resolve(_model_uri(model, version)).source, Path(temporary))


def _model_uri(model: str, version: str) -> str:
    if version.isdigit():
        return f"models:/{model}/{version}"
    if version.startswith("m-"):
        return f"models:/{version}"
    raise NotFound(f"model {model} version {version} is not served any more and is in no registry")


def _read(artifact: Artifact, name: str, shown: str) -> ReferenceRows:
    path = artifact.folder / name
    if not path.resolve().is_relative_to(artifact.folder.resolve()):
        raise InvalidArtifact(f"{shown} names the reference {name!r}, which lies outside of the model")
    try:
        table = pq.read_table(path)
        times = None
        if EVENT_TIME in table.column_names:
            times = table.column(EVENT_TIME).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    except FileNotFoundError:
        raise InvalidArtifact(f"{shown} lacks its reference {name!r}") from None
    except (OSError, pa.ArrowException) as error:
        raise InvalidArtifact(f"the reference {name!r} of {shown} cannot be read: {error}") from None
    return ReferenceRows(table, times, artifact.model_id)
