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
from tests.wrap.conftest import is_proven


def test_a_number_next_to_a_category_is_another_category():
    random = np.random.default_rng(0)
    table = pd.DataFrame({"a": random.choice([0.1, 0.2, 0.7], 200)})
    target = table.a * 3 + random.normal(size=200) * 0.01
    encoded = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(table, target)

    wrapped = wrap(encoded, table)

    assert wrapped.report.state == "proven"
    assert wrapped.report.sources["near categories"] > 0
    assert "64 bits" in wrapped.report.repair


@pytest.mark.parametrize("classes", [2, 3])
def test_target_encoder_is_proven_for_two_and_more_classes(classes, weather):
    table, _ = weather
    labels = np.array(["x", "y", "z"])[(table.hour + (table.city == "rome")) % classes]
    model = make_pipeline(TargetEncoder(random_state=0), LogisticRegression()).fit(
        table[["city"]], labels
    )

    assert is_proven(model, table[["city"]])


@pytest.mark.parametrize(
    ("columns", "steps"),
    [
        (["city"], [HistGradientBoostingClassifier()]),
        (["city", "grade"], [HistGradientBoostingClassifier()]),
        (["city"], [StandardScaler(), XGBClassifier(n_estimators=20)]),
    ],
    ids=["texts", "texts and fractions", "scaled"],
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
@pytest.mark.parametrize("options", ONE_HOT.values(), ids=ONE_HOT.keys())
def test_one_hot_encoder_is_proven_with_every_option(options):
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

    wrapped = wrap(
        make_pipeline(OneHotEncoder(**options), LogisticRegression()).fit(table, labels), table
    )

    assert wrapped.report.state == "proven"
    assert ("unseen" in wrapped.report.refused_by_original) == ("handle_unknown" not in options)


ENCODERS = [
    OneHotEncoder(handle_unknown="ignore"),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["one-hot", "ordinal"])
@pytest.mark.parametrize("missing", [None, np.nan], ids=["None", "NaN"])
def test_texts_that_are_objects_are_missing_as_in_the_example(missing, encoder):
    """Check object columns as in pandas 2: the encoder distinguishes None and NaN."""
    values = np.random.default_rng(0).choice(np.array(["x", "y", missing], dtype=object), 400)
    table = pd.DataFrame({"gaps": pd.Series(values, dtype=object)})
    model = make_pipeline(encoder, LogisticRegression()).fit(
        table, (table.gaps == "x") | table.gaps.isna()
    )

    assert is_proven(model, table)


@pytest.mark.parametrize("code", [np.nan, -2], ids=["NaN", "a code of its own"])
def test_missing_text_becomes_the_ordinal_that_the_encoder_gives_it(code, weather):
    table, labels = weather
    table = table[["city", "hour"]].copy()
    table.loc[::7, "city"] = np.nan
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=code
    )
    columns = make_column_transformer((encoder, ["city"]), remainder="passthrough")

    wrapped = wrap(
        make_pipeline(columns, HistGradientBoostingClassifier(max_iter=5)).fit(table, labels), table
    )

    assert wrapped.report.state == "proven"
    assert wrapped.report.refused_by_original == {}


def test_gaps_are_marked_by_the_imputer_s_indicator(weather):
    table, labels = weather
    numbers = table[["temperature", "humidity"]]
    model = make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(
        numbers, labels
    )

    assert is_proven(model, numbers)


def test_ordinals_of_infrequent_categories_are_refused():
    table = pd.DataFrame({"kind": ["a", "b", "c", "a"] * 5})
    model = make_pipeline(OrdinalEncoder(min_frequency=6), Ridge()).fit(table, np.arange(20))
    with pytest.raises(ConversionError, match=r"OrdinalEncoder .*infrequent"):
        wrap(model, table)
