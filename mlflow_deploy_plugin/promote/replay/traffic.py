"""The captured rows of an endpoint, as inputs and outputs of a version."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from mlflow_deploy_plugin.core.errors import InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.tables import as_array, with_both_names
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays


@dataclass(frozen=True)
class Traffic:
    """The captured rows of an endpoint. By `capture`, the log lacks columns or has
    hashes instead of values.
    """

    log: InferenceLog
    endpoint: str
    capture: CaptureSpec = field(default_factory=CaptureSpec)

    def require(
        self,
        shown: str,
        artifact: Artifact,
        names: Iterable[str],
        present: Collection[str],
    ) -> None:
        """Raise InvalidConfig if rows with the columns `present` lack values of the
        inputs `names` of a version.
        """
        optional = {column.name for column in artifact.columns if not column.required}
        available = {*present, *optional.difference(self.capture.drop)}
        missing = [name for name in names if name in self.capture.mask or name not in available]
        if missing:
            raise InvalidConfig(
                f"{shown} needs {join_names(missing)}, which captured rows of {self.endpoint} "
                "lack or mask: change capture.drop, capture.mask or capture.keys by `onnxserve "
                "endpoint update`, and replay later rows"
            )

    def without_masked(self, artifact: Artifact | None, table: pa.Table) -> pa.Table:
        """Return the table without the columns of `capture.mask`. An answer is dropped
        under its output's name and under its name in the log.
        """
        masked = with_both_names(self.capture.mask, artifact)
        return table.drop_columns([name for name in table.column_names if name in masked])


def open_traffic(name: str, endpoint: Endpoint | None) -> Traffic:
    """Return the traffic of an endpoint; `endpoint` is None if the store does not have
    it.
    """
    location = load_settings().inference_log
    if endpoint is None:
        return Traffic(open_log(location, None), name)
    return Traffic(open_log(location, endpoint.rows_since), name, endpoint.spec.capture)


def arrays_of(table: pa.Table, names: Iterable[str]) -> NamedArrays:
    """Return the columns that the table has, [N] or [N, …] by name. Raises
    SchemaMismatch if lists differ in length.
    """
    arrays = {}
    for name in names:
        if name not in table.column_names:
            continue
        array = as_array(table.column(name).combine_chunks())
        if array is None:
            raise SchemaMismatch(
                f"the lists of column {name!r} have different lengths",
                column=name,
            )
        arrays[name] = array
    return arrays
