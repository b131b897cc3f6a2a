"""Every kind of monitor returns a result for any rows in a window."""

from typing import Any, get_args

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.kinds import drift, performance, service_level, shadow
from mlflow_deploy_plugin.watch.result import State

from .conftest import CLASSIFIER, REGRESSOR

ROWS = 60
KINDS = {
    "drift": (drift.judge, {"require": ["missing<=0.1", "unseen<=0.1"]}),
    "performance": (performance.judge, {"require": ["accuracy>=0.8", "roc_auc>=0.7", "rmse<=2"]}),
    "shadow": (shadow.judge, {"require": ["disagreement<=0.1"]}),
    "service_level": (service_level.judge, {"require": ["p99<=0.1", "error_rate<=0.1"]}),
}
LABELLED = {kind: KINDS[kind] for kind in ("performance", "shadow")}
CHANCES = [[0.4, 0.6]] * ROWS
ODD: dict[str, dict[str, Any]] = {
    "no answers": {"x": np.arange(ROWS)},
    "null answers": {"prediction": [None] * ROWS, "output.probabilities": [None] * ROWS},
    "some null answers": {
        "prediction": [None, 1, 0] * (ROWS // 3),
        "output.probabilities": [None, *CHANCES[1:]],
    },
    "texts": {"prediction": ["late"] * ROWS, "output.probabilities": ["high"] * ROWS},
    "fractions": {"prediction": np.linspace(-1, 1, ROWS), "output.probabilities": CHANCES},
    "no numbers": {
        "prediction": np.full(ROWS, np.nan),
        "output.probabilities": [[np.nan, np.nan]] * ROWS,
    },
    "infinities": {
        "prediction": np.full(ROWS, np.inf),
        "output.probabilities": [[np.inf, -np.inf]] * ROWS,
    },
    "huge": {"prediction": np.full(ROWS, 1e300), "output.probabilities": [[1e300, 1e300]] * ROWS},
    "vectors": {"prediction": CHANCES, "output.probabilities": [[0.1, 0.2, 0.7]] * ROWS},
    "ragged": {"prediction": [0] * ROWS, "output.probabilities": [[0.5], [0.5, 0.5]] * (ROWS // 2)},
    "structures": {"prediction": [{"a": 1}] * ROWS},
    "bytes": {"prediction": [b"\xff"] * ROWS},
    "truth of every sort": {"prediction": [0, 1] * (ROWS // 2), "output.probabilities": CHANCES},
    "odd times": {
        "prediction": [0] * ROWS,
        "_latency_us": [None, -5, 2**62] * (ROWS // 3),
        "_status": [None] * ROWS,
    },
}


FIRST_TESTED = {"some null answers", "infinities", "ragged", "odd times"}


@pytest.mark.parametrize(
    "given",
    [name if name in FIRST_TESTED else pytest.param(name, marks=pytest.mark.long) for name in ODD],
)
def test_odd_rows_have_an_outcome(endpoint, given):
    """Write labels of every type, and a shadow with equal answers."""
    columns = {
        "flight": np.arange(ROWS),
        **ODD[given],
        "_prediction_id": [f"id-{row}" for row in range(ROWS)],
    }
    endpoint.answer(columns | {"_shadow": [False] * ROWS})
    endpoint.answer(
        columns | {"_shadow": [True] * ROWS, "_variant": ["candidate"] * ROWS}, version="2"
    )
    endpoint.label(
        "flight", {row: [0, 1, "late", 0.5, 1e300, True, None][row % 7] for row in range(ROWS)}
    )
    for meaning in (CLASSIFIER, REGRESSOR):
        endpoint.serve(meaning, v2=meaning)
        for kind, (judge, spec) in KINDS.items() if meaning is CLASSIFIER else LABELLED.items():
            judged = judge(
                endpoint.ask(kind=kind, min_rows=20, segment_by=["flight", "prediction"], **spec)
            )

            assert judged.reason, kind
            assert judged.state in get_args(State), kind
            assert all(np.isfinite(value) for value in judged.figures.values()), (kind, judged)
