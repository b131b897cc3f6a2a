"""Encoders of category_encoders and vectorizers of skrub are proven."""

import category_encoders
import pandas as pd
import pytest
import skrub
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.category_table import delays
from tests.support.refusals import refused
from tests.wrap.conftest import is_proven

COLUMNS = ["city", "zip", "sex"]


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


@pytest.mark.long
def test_table_vectorizer_without_dates_is_proven():
    table, delayed = delays()

    def fitted(rows):
        classifier = HistGradientBoostingClassifier(max_iter=10)
        return make_pipeline(skrub.TableVectorizer(), classifier).fit(rows, delayed)

    assert is_proven(fitted(table), table)
    dated = table.assign(day=pd.date_range("2026-01-01", periods=300).astype(str))
    with refused(ConversionError, "no converter", "skrub", "TableVectorizer"):
        wrap(fitted(dated), dated)
