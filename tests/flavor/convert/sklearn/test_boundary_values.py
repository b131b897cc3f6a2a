import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsRegressor, RadiusNeighborsRegressor

from mlflow_deploy_plugin.errors import ParityError
from mlflow_deploy_plugin.flavor.wrap import wrap


def test_neighbours_that_are_equally_near_are_refused_where_another_one_wins() -> None:
    random = np.random.default_rng(0)
    grid = pd.DataFrame(random.integers(0, 4, (120, 2)).astype(float), columns=["a", "b"])

    with pytest.raises(ParityError):
        wrap(KNeighborsRegressor(3).fit(grid, random.normal(size=120)), grid)


def test_radius_in_which_far_rows_have_no_neighbour_is_refused(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix

    with pytest.raises(ParityError, match="far rows: the model cannot compute"):
        wrap(RadiusNeighborsRegressor(200.0).fit(rows[:200], target[:200]), rows[:200])
