"""The preprocessing of the table `weather` (tests/wrap/conftest.py)."""

from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def weather_columns(impute_texts=False):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore")
    if impute_texts:
        texts = make_pipeline(SimpleImputer(strategy="most_frequent"), texts)
    return ColumnTransformer(
        [
            ("numbers", numbers, ["temperature", "humidity", "hour"]),
            ("texts", texts, ["city"]),
            ("codes", OneHotEncoder(handle_unknown="ignore"), ["weekend", "code"]),
        ],
        sparse_threshold=0,
    )
