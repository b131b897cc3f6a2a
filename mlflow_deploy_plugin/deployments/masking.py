"""Which columns of an endpoint's log are masked, and with what: labels that go straight into it have to be alike."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log.label_files import LabelEntry
from mlflow_deploy_plugin.inference_log.labels import Label, labels_table
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.span import TimeRange
from mlflow_deploy_plugin.inference_log.view import View, view_schema, view_tables
from mlflow_deploy_plugin.server.mask import MASK_KEY, Mask
from mlflow_deploy_plugin.server.state import SPEC
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs

_MASKED = re.compile(r"[0-9a-f]{32}")
_NO_KEY = "is masked in the log, and the key of the mask is not on this machine"


@dataclass(frozen=True)
class LabelMasking:
    """Which key columns stand in the log as hashes, and the key for it; `refusal` says why there is none."""

    columns: frozenset[str] = frozenset()
    key: Path | None = None
    refusal: str = _NO_KEY

    def table(self, entries: Iterable[LabelEntry], received_us: int, segment: str) -> pa.Table:
        """The labels as they stand in the log.

        Raises:
            InvalidConfig: a key column is masked, and its key is not here.
        """
        mask = Mask(self.key) if self.key else None
        labels = []
        for entry in entries:
            said, key = entry.feedback, entry.feedback.key
            if key and self.columns & key.keys():
                if mask is None:
                    raise InvalidConfig(f"{', '.join(sorted(self.columns & key.keys()))} {self.refusal}")
                key = mask.values(key, self.columns)
            labels.append(Label(said.prediction_id, said.row, key, said.label, received_us, segment, entry.number))
        return labels_table(labels)


def label_masking(deployments: Deployments, log: InferenceLog, endpoint: str) -> LabelMasking:
    """As the endpoint's spec says it: that of the store, else those that servers of this machine have left.

    Without any, a column whose logged values look like masks is one.

    Raises:
        OnnxserveError: the log is down.
    """
    settings = deployments.settings
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        key = settings.deployments_path / endpoint / MASK_KEY
        return LabelMasking(frozenset(stored.spec.capture.mask), key if key.exists() else None)
    left = list(_left_by_servers(settings, endpoint))
    if not left:
        refusal = (
            f"looks masked in the log, and no spec of {endpoint} is on this machine: bring these labels by its server "
            "(--url), or by prediction id"
        )
        return LabelMasking(_looks_masked(log, endpoint), None, refusal)
    columns = frozenset(name for _, spec in left for name in spec.capture.mask)
    keys = {key.read_bytes(): key for folder, _ in left if (key := folder / MASK_KEY).exists()}
    if len(keys) > 1:
        shown = " and ".join(sorted(map(str, keys.values())))
        return LabelMasking(columns, None, f"is masked in the log, and which key it is by is not known: {shown}")
    return LabelMasking(columns, next(iter(keys.values()), None))


def _left_by_servers(settings: Settings, endpoint: str) -> Iterator[tuple[Path, EndpointSpec]]:
    """State folders of this machine whose spec has the endpoint, which nobody may have deployed."""
    folders = [settings.deployments_path / endpoint, *sorted((settings.home_path / "serve").glob("*"))]
    for folder in folders:
        with suppress(OSError, UnicodeDecodeError, InvalidConfig):  # there is none, or none that could be served
            for spec in load_specs((folder / SPEC).read_text()):
                if spec.name == endpoint:
                    yield folder, spec


def _looks_masked(log: InferenceLog, endpoint: str) -> frozenset[str]:
    """The model's columns whose last logged values include one like those of `server.mask`."""
    hours = log.hours(endpoint)
    if not hours:
        return frozenset()
    view = View(endpoint, TimeRange(hours[-1].start, hours[-1].end), labels=False, shadows=True)
    schema = view_schema(log, view)
    texts = {field.name for field in schema if field.type == pa.string() and not field.name.startswith("_")}
    rows = next(iter(view_tables(log, view, texts)), None)
    if rows is None:
        return frozenset()
    values = {name: rows.column(name).to_pylist() for name in texts & set(rows.column_names)}
    return frozenset(
        name for name, said in values.items() if any(value is not None and _MASKED.fullmatch(value) for value in said)
    )
