"""An endpoint with answered rows, their labels, and the files of a version; without a
registry.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter
from tests.support.models import graph_tensor
from tests.watch.conftest import write_model

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
    def log_folder(self):
        return Path(self.settings.inference_log)

    @property
    def state_dir(self):
        return self.settings.deployments_path / ENDPOINT

    def serve(
        self,
        meaning,
        reference=None,
        **others,
    ):
        """Write the files of version 1 to the server's folder, and of additional
        versions (`v2=…`).
        """
        variants = {}
        for name, section in {"v1": meaning, **others}.items():
            folder = self.settings.home / "models" / f"{name}-{uuid.uuid4().hex[:6]}"
            write_model(folder, reference, **section)
            version = name.removeprefix("v")
            variants[name] = WantedVariant(
                model_uri=f"models:/{MODEL}/{version}", model=MODEL, version=version, folder=folder
            )
        self.state_dir.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(generation=1, endpoints={ENDPOINT: WantedEndpoint(variants=variants)})
        write_state(self.state_dir / WANTED, wanted)

    def answer(self, columns, day=DAY, version="1", folder=""):
        """Write rows, each as a separate request, over three hours. `columns` may
        contain log columns.

        Args:
            folder: a log in a subfolder of the log.
        """
        rows = len(next(iter(columns.values())))
        times = [day + timedelta(seconds=3 * 3_600 * row // max(rows, 1)) for row in range(rows)]
        metadata = {
            "_event_time": times,
            "_variant": ["champion"] * rows,
            "_offset": np.arange(rows),
            "_row": np.zeros(rows, np.int32),
        }
        LogWriter(self.log_folder / folder).write({**metadata, **columns}, version)

    def label(self, column, labels, name="labels"):
        """Write labels of the rows by the value of a key column."""
        received = int((DAY + timedelta(days=2)).timestamp() * 1_000_000)
        entries = [
            Label(None, None, {column: key}, value, received, name, offset)
            for offset, (key, value) in enumerate(labels.items())
        ]
        LogWriter(self.log_folder).label(*entries, day=f"{DAY:%F}", name=name)

    def ask(self, window="2013-04-01/1d", **spec):
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
