import pandas as pd
import pytest
import skrub
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.category_table import delays
from tests.support.refusals import refused
from tests.wrap.conftest import is_proven


@pytest.mark.long
def test_table_vectorizer_without_dates_is_proven():
    table, delayed = delays()
    model = make_pipeline(skrub.TableVectorizer(), HistGradientBoostingClassifier(max_iter=10)).fit(
        table, delayed
    )
    assert is_proven(model, table)

    dated = table.assign(day=pd.date_range("2026-01-01", periods=300).astype(str))
    model = make_pipeline(skrub.TableVectorizer(), HistGradientBoostingClassifier(max_iter=10)).fit(
        dated, delayed
    )
    with refused(ConversionError, "no converter", "skrub", "TableVectorizer"):
        wrap(model, dated)
