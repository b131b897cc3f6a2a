"""The rows that a prediction is explained against: a sample of the model's reference, or its input example."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.types import is_floating

from mlflow_deploy_plugin.errors import InvalidArtifact, OnnxserveError
from mlflow_deploy_plugin.runtime.model import OnnxModel
from mlflow_deploy_plugin.runtime.rows import in_types
from mlflow_deploy_plugin.runtime.schema import Feeds
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.server.warmup import EXAMPLE


@dataclass(frozen=True, eq=False)
class Background:
    """Rows in the form in which the graph is fed.

    Attributes:
        source: `reference` or `input_example`.
    """

    feeds: Feeds
    source: str


def read_background(model: OnnxModel, most_rows: int, seed: int) -> Background:
    """At most `most_rows` of the model's own rows; the same for the same seed.

    Raises:
        InvalidArtifact: there are none, they cannot be read, or do not fit the signature.
    """
    artifact = model.artifact
    try:
        if artifact.reference is not None:
            return Background(_reference(model, artifact.reference, most_rows, seed), "reference")
        example = artifact.folder / EXAMPLE
        if example.is_file():
            feeds = mlflow.decode(JSON, example.read_bytes(), model.schema)
            return Background({name: array[:most_rows] for name, array in feeds.items()}, "input_example")
    except (OSError, pa.ArrowException) as error:
        raise InvalidArtifact(f"the rows that came with the model cannot be read: {type(error).__name__}") from None
    except OnnxserveError as error:
        raise InvalidArtifact(f"the rows that came with the model do not fit it: {error.message}") from None
    raise InvalidArtifact("the model came without rows to explain against")


def _reference(model: OnnxModel, file: str, most_rows: int, seed: int) -> Feeds:
    folder = model.artifact.folder
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArtifact(f"{file!r} lies outside of the model")
    schema = model.schema if model.schema.columns else model.schema.by_input
    table = pq.read_table(path, columns=list(schema.names))
    if table.num_rows > most_rows:
        table = table.take(np.sort(np.random.default_rng(seed).choice(table.num_rows, most_rows, replace=False)))
    floats = {name: table.column(name).to_numpy() for name in schema.names if is_floating(table.column(name).type)}
    typed = in_types(schema.dtypes, floats)
    return schema.from_columns(
        {name: typed[name] if name in typed else table.column(name).to_pylist() for name in schema.names}
    )
