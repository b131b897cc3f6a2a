"""Finds the topics of texts and trains a classifier that tells them, logs it as checked ONNX and registers it.

    mlflow run . -e text_topics --env-manager local         # or: python -m projects.text_topics.train
    mlflow run . -e text_topics --env-manager local -P data=tickets.csv -P column=body -P topics=12

The texts are a CSV's column, or by default real English prose that is on every machine that runs this: the docstrings
of five installed libraries. Topics are found by NMF (Lee and Seung 1999) over TF-IDF and named by their heaviest words.
NMF solves an optimisation for each new text, which has no ONNX form. So a logistic regression learns to tell a text's
strongest topic from the same TF-IDF; how often it agrees with NMF on held-out texts is a metric.
"""

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import NMF
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.errors import InvalidConfig
from projects.tables import EXAMPLE_ROWS, read_rows
from projects.training import log_options, log_scores, option, picture, register, run_command

LIBRARIES = ("matplotlib", "pandas", "scipy", "sklearn", "sqlalchemy")
MIN_WORDS = 40
TEXTS_PER_LIBRARY = 800
TEXT, SOURCE = "text", "source"


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    data: str = option("", "CSV file with a header; empty: docstrings of installed libraries")
    column: str = option("", "column of the texts; needed with data")
    topics: int = option(10, "number of topics")
    words: int = option(2000, "words of the vocabulary at most")
    seed: int = option(7, "chooses the texts and the held-out fifth")
    registered_model: str = option("text-topics", "where the version is registered")


def train(options: Training) -> Any:
    """Train, log and register one version, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: the file, the column or a number is not valid.
        ParityError: the ONNX form would answer otherwise than the pipeline.
    """
    if options.topics < 2:
        raise InvalidConfig(f"topics {options.topics}: a whole number from 2 is expected")
    texts, origin = load_texts(options)
    if len(texts) < 20 * options.topics:
        raise InvalidConfig(
            f"{origin}: {len(texts)} texts; {options.topics} topics need at least {20 * options.topics}"
        )
    with mlflow.start_run():
        log_options(options)
        known, new = train_test_split(texts, test_size=0.2, random_state=options.seed)
        # these tokens are the same in ONNX as in scikit-learn; those of its default pattern are not
        tfidf = TfidfVectorizer(
            token_pattern="[a-zA-Z]{3,}", stop_words="english", min_df=3, max_df=0.4, max_features=options.words
        )
        found = tfidf.fit_transform(known[TEXT])
        nmf = NMF(options.topics, init="nndsvda", random_state=options.seed, max_iter=400).fit(found)
        names = name_topics(nmf.components_, tfidf.get_feature_names_out())
        told = names[nmf.transform(found).argmax(axis=1)]
        pipeline = make_pipeline(
            ColumnTransformer([(TEXT, TfidfVectorizer(**tfidf.get_params()), TEXT)]),
            LogisticRegression(C=10, max_iter=1000),
        ).fit(known[[TEXT]], told)
        by_nmf = names[nmf.transform(tfidf.transform(new[TEXT])).argmax(axis=1)]
        by_classifier = pipeline.predict(new[[TEXT]])
        scores = {"agreement_with_nmf": float((by_nmf == by_classifier).mean())}
        if SOURCE in new:
            scores["mutual_information_with_source"] = float(normalized_mutual_info_score(new[SOURCE], by_classifier))
        log_scores(scores)
        print("\n".join(f"topic {name}" for name in names), flush=True)
        _draw(names, by_classifier, new.get(SOURCE, pd.Series("all", new.index)), origin)
        return register(
            pipeline,
            options.registered_model,
            origin,
            f"NMF, {options.topics} topics, told by a logistic regression",
            input_example=known[[TEXT]].head(EXAMPLE_ROWS).reset_index(drop=True),
            parity_data=new[[TEXT]],
        )


def load_texts(options: Training) -> tuple[pd.DataFrame, str]:
    """Return the texts in the column `text`, with their `source` if it is known, and where they are from."""
    if options.data:
        rows, origin = read_rows(Path(options.data), options.column, "column")
        texts = rows[options.column].dropna().astype(str).drop_duplicates()
        return pd.DataFrame({TEXT: texts}).reset_index(drop=True), origin
    rows = pd.DataFrame([(text, name) for name in LIBRARIES for text in docstrings(name)], columns=[TEXT, SOURCE])
    rows = rows.drop_duplicates(TEXT)
    chosen = [
        part.sample(min(len(part), TEXTS_PER_LIBRARY), random_state=options.seed) for _, part in rows.groupby(SOURCE)
    ]
    return pd.concat(chosen, ignore_index=True), f"docstrings of {', '.join(LIBRARIES)} as installed"


def docstrings(library: str) -> list[str]:
    """Return the docstrings of at least 40 words of a library's modules, classes and functions; nothing is imported."""
    found = find_spec(library)
    if found is None or not found.submodule_search_locations:
        return []
    folder, texts = Path(found.submodule_search_locations[0]), []
    for path in sorted(folder.rglob("*.py")):
        if "test" in path.relative_to(folder).as_posix():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= MIN_WORDS:
                    texts.append(text)
    return texts


def name_topics(components: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return a name for each topic: its three weightiest words.

    Args:
        components: [topics, words], NMF's.
    """
    return np.array([" ".join(words[row.argsort()[::-1][:3]]) for row in components])


def _draw(names: np.ndarray, told: np.ndarray, source: pd.Series, origin: str) -> None:
    """Draw the share of each source's texts that a topic has."""
    shares = pd.crosstab(told, source.to_numpy(), normalize="columns").reindex(names, fill_value=0.0)
    with picture(f"Topics of {len(told):,} held-out texts\n({origin})") as axes:
        axes.imshow(shares, cmap="Blues", aspect="auto", vmin=0)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xticks(range(shares.shape[1]), shares.columns, fontsize=8, rotation=20)
        for (row, column), share in np.ndenumerate(shares.to_numpy()):
            if share >= 0.01:
                axes.text(
                    column,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if share > 0.4 else "black",
                )


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
