import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.wrap.conftest import cases, is_proven

WORDS = ["good", "wärm", "été", "żółw", "ok_1", "istanbul", "日本", "οδος"]


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
    "a½b ﬁn ™x ℌ",
    "e\u0301te\u0301 가나",
    "ΟΔΟΣ ΟΔΟ\u0301Σ. Σ",
    "ΟΔΟΣ.ΟΔΟΣ'Α ΣΑΣ\u0301",
]


VECTORIZERS = {
    "as it comes": TfidfVectorizer,
    "counts, own pattern": lambda: CountVectorizer(token_pattern=r"[\w-]+"),
    "whole words of some letters": lambda: CountVectorizer(token_pattern=r"(?u)\b[a-zé]{2,}\b"),
    "pairs": lambda: CountVectorizer(ngram_range=(1, 2)),
    "pairs of what is no stop word": lambda: TfidfVectorizer(
        ngram_range=(1, 3), stop_words=["good", "été"]
    ),
    "pairs without accents": lambda: TfidfVectorizer(ngram_range=(1, 2), strip_accents="unicode"),
    "characters without accents": lambda: TfidfVectorizer(
        analyzer="char", strip_accents="ascii", lowercase=False
    ),
    "hashed, of ASCII": lambda: HashingVectorizer(n_features=16, strip_accents="ascii"),
    "a vocabulary with a stop word": lambda: CountVectorizer(
        vocabulary=["good", "wärm"], stop_words=["wärm"]
    ),
    "case kept": lambda: TfidfVectorizer(lowercase=False, sublinear_tf=True),
    "characters": lambda: TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
    "characters within words": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
    "a tokenizer": lambda: CountVectorizer(tokenizer=str.split, token_pattern=None),
    "a tokenizer of one's own": lambda: TfidfVectorizer(
        tokenizer=lambda text: re.findall(r"\w+", text)
    ),
    "hashed": lambda: HashingVectorizer(n_features=64),
    "hashed characters": lambda: HashingVectorizer(n_features=64, analyzer="char"),
    "hashed, otherwise": lambda: HashingVectorizer(
        n_features=16, alternate_sign=False, norm="l1", stop_words=["good"], lowercase=False
    ),
    "hashed, binary": lambda: HashingVectorizer(
        n_features=16, binary=True, norm=None, lowercase=False
    ),
    "binary, without length": lambda: TfidfVectorizer(binary=True, norm=None),
}


@pytest.mark.long
@pytest.mark.parametrize("make", cases(VECTORIZERS))
def test_texts_are_split_as_by_python(make, saved):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 5))) for _ in range(150)]
    model = make_pipeline(make(), LogisticRegression()).fit(
        texts, ["good" in text for text in texts]
    )

    loaded = saved(model, [text for text in texts if text.isascii()])

    inputs = TEXTS + texts[:20]
    together = _probabilities(loaded, inputs)
    alone = [_probabilities(loaded, [text])[0] for text in inputs]
    np.testing.assert_allclose(together, model.predict_proba(inputs), atol=1e-5)
    np.testing.assert_allclose(alone, together, atol=1e-6)


def _probabilities(loaded, texts):
    return loaded.run(loaded.schema.from_columns({"text": texts}))["probabilities"]


LONGER = [" ".join(WORDS[:n]) for n in range(1, 7)] * 20


def _of_long_texts(vectorizer):
    labels = ["ok_1" in text for text in LONGER]
    return make_pipeline(vectorizer, LogisticRegression()).fit(LONGER, labels)


@pytest.mark.long
def test_long_words_need_little_memory(saved):
    """Limit memory: a table of all texts as words or characters, padded to the longest
    text, would take 12 GB.
    """
    model = _of_long_texts(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)))
    inputs = ["a " * 2000, "x" * 3000, *LONGER[:60]]

    probabilities = _probabilities(saved(model, LONGER), inputs)
    np.testing.assert_allclose(probabilities, model.predict_proba(inputs), atol=1e-5)


_PEAK = """
import re, sys
from pathlib import Path
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

model = OnnxModel.load(Path(sys.argv[1]))
for texts in (["good wärm " * 5000], ["ok_1 good"] * 999 + ["good wärm " * 5000]):
    found = model.run(model.schema.from_columns({"text": texts}))["probabilities"]
    [peak] = re.findall(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    print(peak, *found[-1])
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["pairs", "characters", "hashed"])
def test_long_text_needs_little_memory(name, saved):
    """Limit memory: a table of all rows, padded to the longest row, would take several
    GB.
    """
    model = _of_long_texts(VECTORIZERS[name]())
    folder = saved(model, LONGER).artifact.folder

    command = [sys.executable, "-c", _PEAK, folder]
    run = subprocess.run(command, capture_output=True, text=True, check=True)

    (alone, *of_one), (beside, *of_many) = (
        map(float, line.split()) for line in run.stdout.splitlines()
    )
    assert beside < 1.5 * alone
    assert of_many == pytest.approx(of_one, abs=1e-6)
    assert of_one == pytest.approx(model.predict_proba(["good wärm " * 5000])[0], abs=1e-5)


def test_texts_are_answered_in_their_order(saved):
    model = _of_long_texts(TfidfVectorizer())
    loaded = saved(model, LONGER)

    for rows in (1, 2, 64, 65, 129):
        for last in ("wärm", "wärm " * 100):
            inputs = [WORDS[row % 7] + " good" * (row % 3) for row in range(rows - 1)] + [last]

            wanted = model.predict_proba(inputs)
            np.testing.assert_allclose(_probabilities(loaded, inputs), wanted, atol=1e-5)


def stemmed(text):
    """A tokenizer whose rule does not affect the words in the example."""
    return [token.removesuffix("s") for token in text.split()]


def without_stop_words(text):
    return [token for token in text.split() if token not in ("the", "and")]


@pytest.mark.parametrize(
    ("vectorizer", "obstacle"),
    [
        (CountVectorizer(tokenizer=str.splitlines, token_pattern=None), "tokenizer=str.splitlines"),
        (CountVectorizer(tokenizer=list, token_pattern=None), "tokenizer=list"),
        (CountVectorizer(tokenizer=stemmed, token_pattern=None), "tokenizer=stemmed"),
        (CountVectorizer(tokenizer=without_stop_words, token_pattern=None), "without_stop_words"),
        (CountVectorizer(token_pattern=r"a|bc"), "token_pattern ('a|bc')"),
        (CountVectorizer(token_pattern=r"\b[a-z]+\b", ngram_range=(1, 2)), "\\b around a class"),
        (CountVectorizer(analyzer="char_wb"), "analyzer ('char_wb')"),
        (CountVectorizer(analyzer=str.split), "analyzer=str.split"),
        (CountVectorizer(strip_accents=str.title), "strip_accents=str.title"),
        (HashingVectorizer(n_features=2**17, lowercase=False), "n_features (131072)"),
        (HashingVectorizer(n_features=8, ngram_range=(1, 2)), "ngram_range ((1, 2))"),
        (HashingVectorizer(n_features=8, token_pattern=r"\b[a-z]+\b"), "\\b around a class"),
    ],
)
def test_unsupported_tokenizer_option_is_named(vectorizer, obstacle):
    texts = ["a good bc", "bc bad", "good a"] * 4
    model = make_pipeline(vectorizer, LogisticRegression()).fit(texts, [True, False, True] * 4)

    with pytest.raises(ConversionError, match=re.escape(obstacle)):
        wrap(model, texts)


@pytest.mark.parametrize("in_table", [False, True], ids=["alone", "as a column"])
def test_texts_are_read_without_a_locale(in_table):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["alpha", "beta", "gamma"], 4)) for _ in range(200)]
    labels = ["alpha" in text for text in texts]
    vectorizer = TfidfVectorizer(token_pattern="[a-zA-Z]+")
    first = make_column_transformer((vectorizer, "text")) if in_table else vectorizer
    example = pd.DataFrame({"text": texts}) if in_table else texts

    assert is_proven(make_pipeline(first, LogisticRegression()).fit(example, labels), example)
