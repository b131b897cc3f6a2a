"""An endpoint with answered rows, their labels, and the files of a version; without a
registry.
"""

import itertools
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant
from mlflow_deploy_plugin.serve.inference_log.labels import LABELS, Label, labels_table
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.inference_log import ENDPOINT, MODEL, event_table
from tests.support.models import graph_tensor

_segments = itertools.count(1)
DAY = datetime(2013, 4, 1, tzinfo=UTC)

CLASSIFIER = {
    "outputs": [
        graph_tensor("label", "int64", -1, role="label"),
        graph_tensor("probabilities", "float32", -1, 2, role="probabilities"),
    ],
    "prediction": ["label"],
    "classes": [0, 1],
}
REGRESSOR = {
    "outputs": [graph_tensor("variable", "float32", -1, role="values")],
    "prediction": ["variable"],
}


@dataclass(frozen=True)
class EndpointWorld:
    """An endpoint with its log and its settings."""

    settings: Settings

    @property
    def log_folder(self) -> Path:
        return Path(self.settings.inference_log)

    @property
    def state_dir(self) -> Path:
        return self.settings.deployments_path / ENDPOINT

    def serve(
        self,
        meaning: Mapping[str, Any],
        reference: pa.Table | None = None,
        **others: Mapping[str, Any],
    ) -> None:
        """Write the files of version 1 to the server's folder, and of additional
        versions (`v2=…`).
        """
        variants = {}
        for name, section in {"v1": meaning, **others}.items():
            folder = self.settings.home / "models" / f"{name}-{uuid.uuid4().hex[:6]}"
            folder.mkdir(parents=True)
            (folder / "model.onnx").write_bytes(b"not opened here")
            flavor: dict[str, Any] = {"data": "model.onnx", "onnxserve_version": "0", **section}
            if reference is not None:
                flavor["reference"] = {"data": "reference.parquet", "rows": len(reference)}
                pq.write_table(reference, folder / "reference.parquet")
            document = {"model_id": "", "mlflow_version": "3", "flavors": {"onnxserve": flavor}}
            (folder / "MLmodel").write_text(yaml.safe_dump(document))
            version = name.removeprefix("v")
            variants[name] = WantedVariant(
                model_uri=f"models:/{MODEL}/{version}", model=MODEL, version=version, folder=folder
            )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(generation=1, endpoints={ENDPOINT: WantedEndpoint(variants=variants)})
        write_state(self.state_dir / WANTED, wanted)

    def answer(
        self, columns: Mapping[str, Any], day: datetime = DAY, version: str = "1", folder: str = ""
    ) -> None:
        """Write rows, each as a separate request, over three hours. `columns` may
        contain log columns.

        Args:
            folder: a log in a subfolder of the log.
        """
        rows = len(next(iter(columns.values())))
        times = [day + timedelta(seconds=3 * 3_600 * row // max(rows, 1)) for row in range(rows)]
        segment = f"segment-{next(_segments)}"
        metadata = {
            "_event_time": times,
            "_received_time": times,
            "_prediction_id": [f"{segment}-{row}" for row in range(rows)],
            "_variant": ["champion"] * rows,
            "_model": [MODEL] * rows,
            "_version": [version] * rows,
            "_segment": [segment] * rows,
            "_offset": np.arange(rows),
            "_row": np.zeros(rows, np.int32),
        }
        table = event_table({**metadata, **columns})
        hours = np.array([time.hour for time in times])
        for hour in np.unique(hours):
            below = (
                self.log_folder
                / folder
                / f"endpoint={ENDPOINT}"
                / f"date={day:%Y-%m-%d}"
                / f"hour={hour:02d}"
            )
            below.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(hours == hour)), below / f"{segment}.parquet")

    def label(self, column: str, labels: Mapping[Any, Any], name: str = "labels") -> None:
        """Write labels of the rows by the value of a key column."""
        received = int((DAY + timedelta(days=2)).timestamp() * 1_000_000)
        entries = [
            Label(None, None, {column: key}, value, received, name, offset)
            for offset, (key, value) in enumerate(labels.items())
        ]
        folder = self.log_folder / LABELS / f"endpoint={ENDPOINT}" / f"date={DAY:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(labels_table(entries), folder / f"{name}.parquet")

    def ask(self, window: str = "2013-04-01/1d", **spec: Any) -> WindowRequest:
        return WindowRequest(
            endpoint=ENDPOINT,
            monitor="watch",
            spec=MonitorSpec.model_validate(spec),
            window=parse_window(window),
            revision=1,
            settings=self.settings,
        )


@pytest.fixture
def endpoint(tmp_path):
    return EndpointWorld(Settings(home=tmp_path))


def finding(judged, subject, check=None, segment=""):
    """Return the one `Finding` of a subject."""
    matches = [
        entry
        for entry in judged.findings
        if (entry.subject, entry.segment) == (subject, segment) and check in (None, entry.check)
    ]
    assert len(matches) == 1, judged.findings
    return matches[0]


def classify(rng, keys, skill=2.0):
    """Return predictions of a calibrated binary classifier, and the truth; a small
    `skill` makes rows hard.
    """
    chances = 1 / (1 + np.exp(-skill * rng.normal(size=len(keys))))
    truth = (rng.random(len(keys)) < chances).astype(int)
    columns = {
        "flight": np.array(keys),
        "carrier": rng.choice(["UA", "AA", "DL"], len(keys)).astype(object),
        "prediction": (chances >= 0.5).astype(np.int64),
        "output.probabilities": [[1 - chance, chance] for chance in chances],
    }
    return columns, dict(zip(keys, truth.tolist(), strict=True))
