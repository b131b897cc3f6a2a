"""Judgements as monitors give them, made of a few plain values."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.monitoring.judgement import Finding, Judgement
from mlflow_deploy_plugin.monitoring.windows import Window
from support.tracking import tracking_at

FIRST = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def judgement() -> Callable[..., Judgement]:
    """`judgement(day=3, temperature=6.1)`: one drift finding a column, drifted beyond 3."""

    def make(day: int = 0, endpoint: str = "flights", findings: tuple[Finding, ...] = (), **said: Any) -> Judgement:
        fields = Judgement.__dataclass_fields__
        scores = {name: value for name, value in said.items() if name not in fields}
        found = [
            Finding(name, "distribution", "drift" if value > 3 else "no drift", "", value, 3.0)
            for name, value in scores.items()
        ]
        start = FIRST + timedelta(days=day)
        values: dict[str, Any] = {
            "endpoint": endpoint,
            "monitor": "daily",
            "kind": "drift",
            "model": "flight-delay",
            "version": "1",
            "model_id": "",
            "window": Window(start, start + timedelta(days=1)),
            "revision": 1,
            "state": "drift" if any(finding.is_alarm for finding in (*found, *findings)) else "no drift",
            "reason": "the largest score is beyond the threshold",
            "rows": 1000,
            "findings": (*found, *findings),
            "figures": {"statistic": max(scores.values()), "threshold": 3.0} if scores else {},
        }
        return Judgement(**{**values, **{name: value for name, value in said.items() if name in fields}})

    return make


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[Path], str]) -> Iterator[MlflowClient]:
    """An MLflow of this module, with one registered version; tests keep apart by the names of their endpoints."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch, tracking_at(new_database(folder)):
        patch.chdir(folder)  # artifacts of a database store go below the working directory
        client = MlflowClient()
        client.create_registered_model("flight-delay")
        client.create_model_version("flight-delay", source=str(folder), description="Trained on a Monday.")
        yield client
