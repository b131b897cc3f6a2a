"""The example of an own converter converts encoders of category_encoders."""

import sys
import tomllib
from pathlib import Path

import category_encoders
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.convert.sklearn.libraries import category_tables
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import is_proven

COLUMNS = ["city", "zip", "sex"]
FOLDER = Path(__file__).parents[2] / "projects" / "own_converter"


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Add the example's distribution to the path."""
    entry_points = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["entry-points"]
    ((group, entries),) = entry_points.items()
    ((name, module),) = entries.items()
    metadata = tmp_path / "category_encoders_onnx-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: category-encoders-onnx\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def table():
    """Columns of numbers, of strings with gaps, and of integer categories."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "distance": random.random(300),
            "city": random.choice(["oslo", "lima", "São Paulo"], 300),
            "hour": random.normal(size=300),
            "zip": random.choice([10, 20, 30], 300),
            "sex": random.choice(["m", "f"], 300),
        }
    )
    return table.assign(city=table.city.mask(random.random(300) < 0.1))


@pytest.fixture(scope="module")
def delayed(table):
    return (table.distance + (table.city == "oslo") + 0.2 * (table.zip == 20) > 0.9).astype(int)


@pytest.mark.long
@pytest.mark.parametrize(
    "encoder",
    [
        category_encoders.OrdinalEncoder(cols=COLUMNS),
        category_encoders.OneHotEncoder(cols=COLUMNS),
        category_encoders.BinaryEncoder(
            cols=COLUMNS, handle_unknown="indicator", handle_missing="indicator"
        ),
        category_encoders.HelmertEncoder(cols=COLUMNS),
        category_encoders.WOEEncoder(cols=COLUMNS),
        category_encoders.CountEncoder(cols=COLUMNS, normalize=True, min_group_size=0.2),
        category_encoders.TargetEncoder(cols=COLUMNS, handle_unknown="error"),
    ],
    ids=lambda encoder: type(encoder).__name__,
)
def test_an_encoder_of_a_table_is_proven(encoder, table, delayed):
    model = make_pipeline(encoder, StandardScaler(), LogisticRegression()).fit(table, delayed)

    assert is_proven(model, table)


@pytest.mark.long
def test_numbers_between_which_a_tree_splits_have_64_bits(table, delayed):
    """CatBoostEncoder uses the target mean for unknown categories and for the first
    training row of each category.
    """
    encoder = category_encoders.CatBoostEncoder(cols=COLUMNS)
    model = make_pipeline(encoder, HistGradientBoostingClassifier(max_iter=20)).fit(table, delayed)

    assert is_proven(model, table)


def test_a_step_of_a_column_transformer_is_one_table_for_each_column(table, delayed):
    columns = make_column_transformer(
        (category_encoders.TargetEncoder(), ["city", "sex"]),
        (StandardScaler(), ["distance", "hour"]),
    )

    assert is_proven(make_pipeline(columns, LogisticRegression()).fit(table, delayed), table)


def test_an_encoder_without_a_table_has_no_graph(table, delayed, monkeypatch):
    model = make_pipeline(category_encoders.OneHotEncoder(cols=COLUMNS), LogisticRegression())
    model.fit(table, delayed)
    with monkeypatch.context() as patch:
        patch.setattr(category_tables, "_MOST_NUMBERS", 10)
        with pytest.raises(ConversionError, match=r"OneHotEncoder .*10 numbers"):
            wrap(model, table)
    monkeypatch.setattr(
        category_encoders.OneHotEncoder, "transform", lambda encoder, rows: rows[["distance"]] * 2
    )
    with pytest.raises(ConversionError, match=r"OneHotEncoder .*'distance'.* categories"):
        wrap(model, table)


def test_a_column_of_which_nothing_was_learned_stays_out_of_the_tables(delayed):
    table = pd.DataFrame({"city": [None] * 300, "sex": ["m", "f", "m"] * 100})
    model = make_pipeline(
        category_encoders.TargetEncoder(cols=["city", "sex"]), LogisticRegression()
    )
    model.fit(table, delayed)

    assert is_proven(model, table)
