import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from xgboost import XGBClassifier

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.wrap.conftest import cases, is_proven, proven


def test_near_number_is_unknown():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"a": random.choice([0.1, 0.2, 0.7], 200)})
    target = table.a * 3 + random.normal(size=200) * 0.01
    encoded = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(table, target)

    report = proven(encoded, table).report

    assert report.sources["near categories"] > 0
    assert "64 bits" in report.repair


def test_target_encoder_is_proven(weather):
    table, _ = weather
    labels = np.array(["x", "y", "z"])[(table.hour + (table.city == "rome")) % 3]
    model = make_pipeline(TargetEncoder(random_state=0), LogisticRegression())

    assert is_proven(model.fit(table[["city"]], labels), table[["city"]])


@pytest.mark.long
@pytest.mark.parametrize(
    ("columns", "steps"),
    [
        (["city", "grade"], [HistGradientBoostingClassifier(max_iter=10)]),
        (["city"], [StandardScaler(), XGBClassifier(n_estimators=20)]),
    ],
    ids=["texts and fractions", "scaled"],
)
def test_encoders_keep_64_bits_before_trees(columns, steps):
    random = np.random.default_rng(0)
    codes = random.integers(0, 400, 1500)
    table = pd.DataFrame(
        {
            "city": [f"city {code}" for code in codes],
            "grade": random.choice([0.1, 0.25, 0.7, 1.3], 1500),
        }
    )[columns]
    labels = random.normal(size=400)[codes] + random.normal(size=1500) > 0
    encoder = make_column_transformer((TargetEncoder(random_state=0), columns))

    assert is_proven(make_pipeline(encoder, *steps).fit(table, labels), table)


ONE_HOT = {
    "strict": {},
    "unknown ignored": {"handle_unknown": "ignore"},
    "first dropped": {"drop": "first"},
    "binary dropped": {"drop": "if_binary", "handle_unknown": "ignore"},
    "infrequent grouped": {"min_frequency": 120, "handle_unknown": "infrequent_if_exist"},
    "few kept, unknown ignored": {"max_categories": 2, "handle_unknown": "ignore"},
    "grouped and dropped": {
        "max_categories": 2,
        "handle_unknown": "infrequent_if_exist",
        "drop": "first",
    },
}


@pytest.mark.long
@pytest.mark.parametrize("options", cases(ONE_HOT))
def test_one_hot_options_are_proven(options):
    """Check strings, fractions, integers and booleans with gaps, and unseen categories
    if the encoder accepts them.
    """
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "text": random.choice(list("aaaaaabbbbcd"), 400),
            "gaps": random.choice(np.array(["x", "y", None]), 400),
            "fraction": random.choice([1.5, 2.5, np.nan], 400),
            "integer": random.integers(0, 3, 400),
            "flag": random.random(400) < 0.5,
        }
    )
    labels = (table.text == "a") ^ (table.integer == 1)

    wrapped = proven(
        make_pipeline(OneHotEncoder(**options), LogisticRegression()).fit(table, labels), table
    )

    assert ("unseen" in wrapped.report.refused_by_original) == ("handle_unknown" not in options)


def _ordinals(code):
    return OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=code
    )


ENCODERS = [OneHotEncoder(handle_unknown="ignore"), _ordinals(-2)]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["one-hot", "ordinal"])
@pytest.mark.parametrize("missing", [None, np.nan], ids=["None", "NaN"])
def test_missing_objects_are_proven(missing, encoder):
    """Check object columns as in pandas 2: the encoder distinguishes None and NaN."""
    values = np.random.default_rng(0).choice(np.array(["x", "y", missing], dtype=object), 400)
    table = pd.DataFrame({"gaps": pd.Series(values, dtype=object)})
    model = make_pipeline(encoder, LogisticRegression()).fit(
        table, (table.gaps == "x") | table.gaps.isna()
    )

    assert is_proven(model, table)


def test_missing_text_has_its_ordinal(weather):
    table, labels = weather
    table = table[["city", "hour"]].copy()
    table.loc[::7, "city"] = np.nan
    columns = make_column_transformer((_ordinals(np.nan), ["city"]), remainder="passthrough")
    model = make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5))

    assert proven(model.fit(table, labels), table).report.refused_by_original == {}


def test_gaps_are_marked_by_the_indicator(weather):
    table, labels = weather
    numbers = table[["temperature", "humidity"]]
    model = make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression())

    assert is_proven(model.fit(numbers, labels), numbers)


def test_infrequent_ordinals_are_refused():
    table = pd.DataFrame({"kind": ["a", "b", "c", "a"] * 5})
    model = make_pipeline(OrdinalEncoder(min_frequency=6), Ridge()).fit(table, np.arange(20))
    with refused(ConversionError, "OrdinalEncoder", "infrequent"):
        wrap(model, table)
