"""The example of an own converter converts encoders of category_encoders."""

import sys
import tomllib
from pathlib import Path

import category_encoders
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.support.category_table import delays
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
def test_encoder_is_proven(encoder):
    table, delayed = delays()
    model = make_pipeline(encoder, StandardScaler(), LogisticRegression()).fit(table, delayed)

    assert is_proven(model, table)


@pytest.mark.long
def test_tree_thresholds_have_64_bits():
    """CatBoostEncoder uses the target mean for unknown categories and for the first
    training row of each category.
    """
    table, delayed = delays()
    encoder = category_encoders.CatBoostEncoder(cols=COLUMNS)
    model = make_pipeline(encoder, HistGradientBoostingClassifier(max_iter=20)).fit(table, delayed)

    assert is_proven(model, table)


def test_encoder_within_column_transformer_is_proven():
    table, delayed = delays()
    columns = make_column_transformer(
        (category_encoders.TargetEncoder(), ["city", "sex"]),
        (StandardScaler(), ["distance", "hour"]),
    )
    assert is_proven(make_pipeline(columns, LogisticRegression()).fit(table, delayed), table)


def test_column_without_values_is_proven():
    table, delayed = delays()
    table = table[["city", "sex"]].assign(city=None)
    model = make_pipeline(category_encoders.TargetEncoder(), LogisticRegression())
    assert is_proven(model.fit(table, delayed), table)
