"""Tests of the errors for invalid options, which are raised before the training."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from projects.flight_delay.train import Training, train
from tests.support.tracking import tracking_at


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (Training(base_model="models:/nobody/1"), NotFound, "there is no registered model nobody"),
        (
            Training(base_model="some/folder"),
            InvalidConfig,
            "base_model some/folder: a registered version",
        ),
        (Training(max_iter=0), InvalidConfig, "max_iter 0: a number above 0 is expected"),
        (Training(more_trees=-1), InvalidConfig, "more_trees -1: a number above 0"),
        (
            Training(learning_rate=float("nan")),
            InvalidConfig,
            "learning_rate nan: a number above 0",
        ),
    ],
)
def test_invalid_parameters_are_refused(asked, kind, said, tmp_path, new_database):
    with tracking_at(new_database(tmp_path)), pytest.raises(kind, match=said):
        train(asked)
