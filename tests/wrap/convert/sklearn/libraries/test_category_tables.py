import numpy as np
import pandas as pd
import pytest
import skrub
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import is_proven


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
def test_table_vectorizer_without_dates_is_proven(table, delayed):
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
