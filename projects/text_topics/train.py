"""Find the topics of texts, train a classifier of topics, log it as checked ONNX and
register it.

    mlflow run projects/text_topics -e text_topics --env-manager local
    # or: python -m projects.text_topics.train
    mlflow run projects/text_topics -e text_topics --env-manager local \\
        -P data=tickets.csv -P column=body -P topics=12

The texts are a column of a CSV file. By default, the texts are English docstrings of
five installed libraries. Topics are found by NMF (Lee and Seung 1999) on TF-IDF and
named after their words with the largest weights. NMF solves an optimisation problem for
each new text, which has no ONNX form. A logistic regression is therefore trained to
predict the strongest topic from the same TF-IDF. Its agreement with NMF on held-out
texts is logged as a metric.
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

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.tables import EXAMPLE_ROWS, read_rows
from projects.training import log_options, log_scores, option, picture, register, run_command

LIBRARIES = ("matplotlib", "pandas", "scipy", "sklearn", "sqlalchemy")
MIN_WORDS = 40
TEXTS_PER_LIBRARY = 800
TEXT = "text"
SOURCE = "source"


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    data: str = option("", "CSV file with a header; default: docstrings of installed libraries")
    column: str = option("", "column of the texts; required with data")
    topics: int = option(10, "number of topics")
    words: int = option(2000, "maximum size of the vocabulary")
    seed: int = option(7, "seed of the texts and the held-out fifth")
    registered_model: str = option("text-topics", "registered model of the version")


def train(options: Training) -> Any:
    """Train, log and register a version, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: the file, the column or a number is not valid.
        ParityError: the predictions of the ONNX form would differ from the pipeline.
    """
    if options.topics < 2:
        raise InvalidConfig(f"topics {options.topics}: a whole number from 2 is expected")
    texts, origin = load_texts(options)
    if len(texts) < 20 * options.topics:
        raise InvalidConfig(
            f"{origin}: {len(texts)} texts; {options.topics} topics need at least "
            f"{20 * options.topics}",
        )
    with mlflow.start_run():
        log_options(options)
        known, new = train_test_split(texts, test_size=0.2, random_state=options.seed)
        # ONNX and scikit-learn find the same tokens with this pattern, but not with the
        # default pattern.
        tfidf = TfidfVectorizer(
            token_pattern="[a-zA-Z]{3,}",
            stop_words="english",
            min_df=3,
            max_df=0.4,
            max_features=options.words,
        )
        weights = tfidf.fit_transform(known[TEXT])
        nmf = NMF(options.topics, init="nndsvda", random_state=options.seed, max_iter=400).fit(
            weights,
        )
        names = name_topics(nmf.components_, tfidf.get_feature_names_out())
        topics = names[nmf.transform(weights).argmax(axis=1)]
        pipeline = make_pipeline(
            ColumnTransformer([(TEXT, TfidfVectorizer(**tfidf.get_params()), TEXT)]),
            LogisticRegression(C=10, max_iter=1000),
        ).fit(known[[TEXT]], topics)
        by_nmf = names[nmf.transform(tfidf.transform(new[TEXT])).argmax(axis=1)]
        by_classifier = pipeline.predict(new[[TEXT]])
        scores = {"agreement_with_nmf": float((by_nmf == by_classifier).mean())}
        if SOURCE in new:
            scores["mutual_information_with_source"] = float(
                normalized_mutual_info_score(new[SOURCE], by_classifier),
            )
        log_scores(scores)
        print("\n".join(f"topic {name}" for name in names), flush=True)
        _draw(names, by_classifier, new.get(SOURCE, pd.Series("all", new.index)), origin)
        return register(
            pipeline,
            options.registered_model,
            origin,
            f"NMF, {options.topics} topics, predicted by a logistic regression",
            input_example=known[[TEXT]].head(EXAMPLE_ROWS).reset_index(drop=True),
            parity_data=new[[TEXT]],
        )


def load_texts(options: Training) -> tuple[pd.DataFrame, str]:
    """Return the texts in the column `text`, with their `source` if it is known, and a
    description of their origin.
    """
    if options.data:
        rows, origin = read_rows(Path(options.data), options.column, "column")
        texts = rows[options.column].dropna().astype(str).drop_duplicates()
        return pd.DataFrame({TEXT: texts}).reset_index(drop=True), origin
    rows = pd.DataFrame(
        [(text, name) for name in LIBRARIES for text in docstrings(name)],
        columns=[TEXT, SOURCE],
    )
    rows = rows.drop_duplicates(TEXT)
    chosen = [
        part.sample(min(len(part), TEXTS_PER_LIBRARY), random_state=options.seed)
        for _, part in rows.groupby(SOURCE)
    ]
    return pd.concat(
        chosen,
        ignore_index=True,
    ), f"docstrings of {', '.join(LIBRARIES)} as installed"


def docstrings(library: str) -> list[str]:
    """Return a library's docstrings with at least 40 words, without importing the
    library.
    """
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0])
    texts = []
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
    """Return a name for each topic: its three words with the largest weights.

    Args:
        components: [topics, words], the components of NMF.
    """
    return np.array([" ".join(words[row.argsort()[::-1][:3]]) for row in components])


def _draw(names: np.ndarray, topics: np.ndarray, source: pd.Series, origin: str) -> None:
    """Draw the share of each topic in the texts of each source."""
    shares = pd.crosstab(topics, source.to_numpy(), normalize="columns").reindex(
        names,
        fill_value=0.0,
    )
    with picture(f"Topics of {len(topics):,} held-out texts\n({origin})") as axes:
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
