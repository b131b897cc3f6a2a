"""Conversions of scikit-learn that decide on the same bits as the original."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
    StackingRegressor,
    VotingRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor, RadiusNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)
from sklearn.tree import DecisionTreeRegressor

from mlflow_deploy_plugin.errors import ConversionError, ParityError
from mlflow_deploy_plugin.flavor import save_model
from mlflow_deploy_plugin.flavor.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.flavor.wrap import wrap
from mlflow_deploy_plugin.runtime import OnnxModel

BEFORE = {
    "nothing": lambda: "passthrough",
    "standard": StandardScaler,
    "min-max": lambda: MinMaxScaler((-1, 2), clip=True),
    "max-abs": MaxAbsScaler,
    "robust": RobustScaler,
    "ordinals": OrdinalEncoder,
    "bins": lambda: KBinsDiscretizer(7, encode="ordinal", quantile_method="averaged_inverted_cdf"),
}


def _saved(model: Any, example: Any, folder: Any) -> OnnxModel:
    save_model(model, folder / "model", input_example=example)
    return OnnxModel.load(folder / "model")


def _rows_that_only_64_bits_tell_apart(threshold: float) -> np.ndarray:
    single = float(np.float32(threshold))
    around = [threshold, single, threshold / 2 + single / 2]
    return np.array([value for one in around for value in (np.nextafter(one, -np.inf), one, np.nextafter(one, np.inf))])


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
@pytest.mark.parametrize(
    "trees",
    [HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=6), DecisionTreeRegressor(max_depth=3)],
    ids=["boosting", "tree"],
)
def test_trees_decide_on_the_same_bits(
    trees: Any, before: Any, matrix: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    rows, target = matrix
    table = pd.DataFrame(rows[:300, :2], columns=["a", "b"])
    first = before()
    model = make_pipeline(first, trees).fit(table, target[:300])
    edges = boundary_values_of(model, ["a", "b"]).edges
    asked = pd.concat(
        pd.DataFrame({name: _rows_that_only_64_bits_tell_apart(edge), other: 0.5})
        for name, other in (("a", "b"), ("b", "a"))
        for edge in edges.get(name, ())
    ) if edges else table  # fmt: skip
    if isinstance(first, OrdinalEncoder):
        asked = table

    saved = _saved(model, table, tmp_path)

    got = saved.run(saved.schema.from_columns({str(name): asked[name].to_numpy() for name in table}))["prediction"]
    np.testing.assert_allclose(got, model.predict(asked[["a", "b"]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_numbers_of_either_precision_are_proven_before_boosting(
    dtype: Any, matrix: tuple[np.ndarray, np.ndarray]
) -> None:
    rows, target = matrix
    table = pd.DataFrame(rows[:300].astype(dtype), columns=list("abcde"))

    wrapped = wrap(
        make_pipeline(RobustScaler(), HistGradientBoostingRegressor(max_iter=5)).fit(table, target[:300]), table
    )

    assert wrapped.report.state == "proven"
    assert wrapped.report.outputs[0].ties == 0


def test_tree_that_splits_by_what_is_missing_is_proven_behind_a_scaler(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix
    table = pd.DataFrame(rows[:400, :2], columns=["a", "b"])
    gone = np.random.default_rng(0).random(400) < 0.3
    table.loc[gone, "a"] = np.nan
    model = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=4)).fit(table, target[:400] + 500 * gone)
    assert np.isinf(model[-1].tree_.threshold).any()

    assert wrap(model, table).report.state == "proven"


ENSEMBLES = {
    "voting": lambda: VotingRegressor(
        [
            ("boosted", HistGradientBoostingRegressor(max_iter=5)),
            ("scaled", make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=4))),
        ]
    ),
    "stacked": lambda: StackingRegressor(
        [("boosted", HistGradientBoostingRegressor(max_iter=5)), ("forest", RandomForestRegressor(5))], cv=2
    ),
}


@pytest.mark.parametrize("make", ENSEMBLES.values(), ids=ENSEMBLES.keys())
def test_parts_of_an_ensemble_keep_their_own_precision(make: Any, matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix

    assert wrap(make().fit(rows[:400], target[:400]), rows[:400]).report.state == "proven"


@pytest.mark.parametrize("classes", [2, 3])
def test_boosted_classes_are_proven_under_a_calibration(classes: int, matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix
    labels = np.array(["a", "b", "c"])[np.digitize(target, [0, 15][: classes - 1])]
    boosted = HistGradientBoostingClassifier(max_iter=5)

    assert wrap(boosted.fit(rows[:400], labels[:400]), rows[:400]).report.state == "proven"
    assert (
        wrap(CalibratedClassifierCV(boosted, cv=2).fit(rows[:400], labels[:400]), rows[:400]).report.state == "proven"
    )


WORDS = ["good", "wärm", "été", "żółw", "ok_1", "istanbul", "日本"]
TEXTS = [
    "wärm GOOD",
    "ÉTÉ été",
    "goodé good",
    "żółw,wärm",
    "",
    " ",
    "İstanbul istanbul",
    "xİ a",
    "ok_1 x",
    "日本 good\n",
    "Kind",
]
VECTORIZERS = {
    "as it comes": TfidfVectorizer,
    "counts, own pattern": lambda: CountVectorizer(token_pattern=r"[\w-]+"),
    "whole words of some letters": lambda: CountVectorizer(token_pattern=r"(?u)\b[a-zé]{2,}\b"),
    "pairs": lambda: CountVectorizer(ngram_range=(1, 2)),
    "case kept": lambda: TfidfVectorizer(lowercase=False, sublinear_tf=True),
    "characters": lambda: TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
    "binary, without length": lambda: TfidfVectorizer(binary=True, norm=None),
}


@pytest.mark.parametrize("make", VECTORIZERS.values(), ids=VECTORIZERS.keys())
def test_texts_are_taken_apart_as_python_does_it(make: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 5))) for _ in range(150)]
    model = make_pipeline(make(), LogisticRegression()).fit(texts, ["good" in text for text in texts])

    saved = _saved(model, [text for text in texts if text.isascii()], tmp_path)

    asked = TEXTS + texts[:20]
    together = saved.run(saved.schema.from_columns({"text": asked}))["probabilities"]
    alone = [saved.run(saved.schema.from_columns({"text": [text]}))["probabilities"][0] for text in asked]
    np.testing.assert_allclose(together, model.predict_proba(asked), atol=1e-5)
    np.testing.assert_allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize(
    ("vectorizer", "obstacle"),
    [
        (CountVectorizer(tokenizer=str.split, token_pattern=None), "tokenizer=str.split"),
        (CountVectorizer(token_pattern=r"a|bc"), "token_pattern ('a|bc')"),
        (CountVectorizer(token_pattern=r"\b[a-z]+\b", ngram_range=(1, 2)), "\\b around something else"),
        (CountVectorizer(analyzer="char_wb"), "analyzer ('char_wb')"),
        (CountVectorizer(strip_accents="unicode"), "strip_accents='unicode'"),
        (CountVectorizer(stop_words=["good"], ngram_range=(1, 2)), "stop_words"),
        (HashingVectorizer(n_features=8), "HashingVectorizer"),
    ],
)
def test_what_takes_texts_apart_in_another_way_is_refused_by_its_name(vectorizer: Any, obstacle: str) -> None:
    texts = ["a good bc", "bc bad", "good a"] * 4
    model = make_pipeline(vectorizer, LogisticRegression()).fit(texts, [True, False, True] * 4)

    with pytest.raises(ConversionError, match=re.escape(obstacle)):
        wrap(model, texts)


def test_neighbours_that_are_equally_near_are_refused_where_another_one_wins() -> None:
    random = np.random.default_rng(0)
    grid = pd.DataFrame(random.integers(0, 4, (120, 2)).astype(float), columns=["a", "b"])

    with pytest.raises(ParityError):
        wrap(KNeighborsRegressor(3).fit(grid, random.normal(size=120)), grid)


def test_radius_in_which_far_rows_have_no_neighbour_is_refused(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix

    with pytest.raises(ParityError, match="far rows: the model cannot compute"):
        wrap(RadiusNeighborsRegressor(200.0).fit(rows[:200], target[:200]), rows[:200])


@pytest.mark.parametrize("method", ["yeo-johnson", "box-cox"])
def test_powers_are_computed_in_64_bits_where_32_overflow(method: str, matrix: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = matrix
    table = pd.DataFrame(np.abs(rows[:300, :2]) ** 0.2 + 0.1, columns=["a", "b"])

    wrapped = wrap(make_pipeline(PowerTransformer(method), Ridge()).fit(table, target[:300]), table)

    assert wrapped.report.state == "proven"


def test_number_beside_a_category_is_another_one() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"a": random.choice([0.1, 0.2, 0.7], 200)})
    target = table.a * 3 + random.normal(size=200) * 0.01
    encoded = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(table, target)

    wrapped = wrap(encoded, table)

    assert wrapped.report.state == "proven"
    assert wrapped.report.sources["near categories"] > 0
    assert "64 bits" in wrapped.report.repair


@pytest.mark.parametrize("classes", [2, 3])
def test_target_encoder_is_proven_for_two_and_more_classes(
    classes: int, weather: tuple[pd.DataFrame, pd.Series]
) -> None:
    table, _ = weather
    labels = np.array(["x", "y", "z"])[(table.hour + (table.city == "rome")) % classes]
    model = make_pipeline(TargetEncoder(random_state=0), LogisticRegression()).fit(table[["city"]], labels)

    assert wrap(model, table[["city"]]).report.state == "proven"
