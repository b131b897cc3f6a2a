"""The windows of null distributions, and how many independent ones they are worth."""

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.threshold.windows import Contiguous, Overlapping


def test_windows_of_the_reference_stand_for_as_many_as_they_are_worth() -> None:
    blocks = Contiguous.cut(np.array([100, 100, 10, 90, 60]), 100)
    steps = Overlapping.cut(np.full(60, 10), 6, 60)

    assert (blocks.effective_n, blocks.starts.tolist()) == (4, [0, 1, 3, 4])
    assert (steps.effective_n, steps.length, steps.starts.tolist()) == (15, 6, list(range(55)))
