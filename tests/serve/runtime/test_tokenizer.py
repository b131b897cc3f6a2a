"""Tests of texts as token arrays: the tokens of the original, padding, limits and
refusals.
"""

import json
import subprocess
import sys
import time
from itertools import cycle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    InferenceError,
    InvalidArtifact,
    NotInstalled,
)
from mlflow_deploy_plugin.serve.runtime.artifact import TokenizerSpec, read_artifact
from mlflow_deploy_plugin.serve.runtime.batcher import unbatchable_reason
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.tokenizer import TextBudget, TextTokenizer
from tests.support.refusals import refused
from tests.support.texts import (
    LANGUAGES,
    PANIC,
    hostile_texts,
    original_tokenizer,
    panicking_model,
    text_model,
    texts,
)

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a tokenizer of transformers after a call, and loads
    it as a server does.
    """

    def save(original, max_length=32):
        file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        file.write_text(original.backend_tokenizer.to_str())
        return TextTokenizer(TokenizerSpec(file, INPUTS, max_length))

    return save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return OnnxModel.load(text_model(tmp_path_factory.mktemp("texts") / "model"))


@pytest.fixture
def pair(saved):
    """Return a function that returns a tokenizer of transformers, and how a server
    loads it.
    """
    pytest.importorskip("transformers")

    def make(language, max_length=32, normalizer=None, **options):
        original = original_tokenizer(language, model_max_length=max_length, **options)
        if normalizer:
            original.backend_tokenizer.normalizer = normalizer
        original(["call"], padding=True, truncation=True)
        return original, saved(original, max_length)

    return make


def embed(model, *rows):
    return model.run(model.schema.from_columns({"text": list(rows)}))["embedding"][:, 0].tolist()


def assert_equal_tokens(original, tokenizer, rows):
    want = original(
        rows, padding=True, truncation=True, return_tensors="np", return_token_type_ids=True
    )
    got = tokenizer.feeds(rows)
    for name in INPUTS:
        np.testing.assert_array_equal(got[name], want[name], err_msg=repr(rows))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_have_the_original_tokens(language, side, pair):
    original, tokenizer = pair(language, padding_side=side, truncation_side=side)

    @settings(max_examples=15)
    @given(texts(), texts())
    def check(first, second):
        assert_equal_tokens(original, tokenizer, [first, second])

    check()


KEPT = 6
"""The number of tokens that a tokenizer keeps. The first start of a text then has 48
characters.
"""


ALPHABETS = (
    *(
        "the model is a b c",
        "модель отвечает на ё",
        "το μοντέλο ΟΔΟΣ ς Σ",
        "نموذج لغوي اﻵ ﷺ",
        "מודל של",
    ),
    *("한 ᄀ ᅡ ᆨ", "한국 모델 응답", "日 本語 は", "हिन्दी में मॉडल", "ภาษา ไทย ำ ก", "É é ́e x́"),
    *("ﾞ x ﾟ y ͺ z", "ﱞ a ﹰ b ㅤ c", "² ½ Ⅷ ٣ १", "ൎ ൎ ൎ ª ŉ"),
)
"""Words with places where a text may be cut, in several alphabets, with letters that
normalizers change or remove.
"""


def long_text(*parts, words=ALPHABETS[0]):
    """Return a text with places where it may be cut, and with hostile parts before, at
    and after these places.
    """
    return f" {words} ".join(["", *parts, ""]).strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_start_of_a_long_text_has_equal_tokens(language, pair):
    original, tokenizer = pair(language, KEPT)

    @settings(max_examples=15)
    @given(
        st.lists(texts(), min_size=4, max_size=12),
        st.sampled_from(["", " ", "    ", "x", "日本"]),
        st.sampled_from(ALPHABETS),
    )
    def check(parts, start, words):
        assert_equal_tokens(
            original, tokenizer, [start * 30 + long_text(*parts, words=words), "".join(parts)]
        )

    check()


@pytest.mark.long
@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_texts_have_the_original_tokens(language, is_long, pair):
    original, tokenizer = pair(language, *[KEPT] * is_long)
    rows = list(hostile_texts(60_000, seed=is_long))
    if is_long:
        parts = zip(rows[::3], rows[1::3], rows[2::3], cycle(ALPHABETS), strict=False)
        rows = [long_text(*three, words=words) for *three, words in parts]
    for start in range(0, len(rows), 500):
        assert_equal_tokens(original, tokenizer, rows[start : start + 500])


@pytest.mark.parametrize("letter", "\uff9e\uff9f\u037a\ufc5e\ufc63\ufe70\ufe7e")
def test_text_is_not_cut_at_a_removed_letter(letter, pair):
    normalizer = normalizers.Sequence(  # as in ALBERT
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    original, tokenizer = pair("Unigram", 5, normalizer)
    assert_equal_tokens(original, tokenizer, [f"{'日' * 39} {letter} model"])


def spent(tokenizer, text):
    """Return the number of characters of the text that are tokenized."""
    budget = TextBudget(10**9)
    tokenizer.feeding(lambda names, feeds, options: [feeds["input_ids"][:, 0]])(
        [], {"text": np.array([text])}, None, budget
    )
    return 10**9 - budget.characters


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_the_start_of_a_text_is_tokenized(language, pair):
    _, tokenizer = pair(language)
    for words in ("the model ", "модель отвечает ", "한국 모델 "):
        assert spent(tokenizer, words * 10_000) < 1000
    assert spent(tokenizer, "日本語" * 10_000) == 30_000  # There is no safe place to cut.


def test_tokenizer_of_several_words_reads_everything(tmp_path):
    plain = Tokenizer.from_file(str(text_model(tmp_path / "model") / "tokenizer.json"))
    text = "the model " * 1000

    def spent_after(change):
        tokenizer = Tokenizer.from_str(plain.to_str())
        change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return spent(TextTokenizer(TokenizerSpec(tmp_path / "tokenizer.json", INPUTS, 32)), text)

    def split_by(pattern):
        splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
        return lambda tokenizer: setattr(tokenizer, "pre_tokenizer", splitter)

    def normalize_by(normalizer):
        return lambda tokenizer: setattr(tokenizer, "normalizer", normalizer)

    assert spent_after(lambda tokenizer: None) < 1000
    whole = [
        lambda tokenizer: tokenizer.enable_truncation(32, direction="left"),
        lambda tokenizer: tokenizer.add_tokens(["the model"]),
        lambda tokenizer: setattr(
            tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)
        ),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", None),
        split_by("(the )+model$"),
        normalize_by(normalizers.Replace(Regex("model.*$"), "")),
        normalize_by(normalizers.Replace("the model", "it")),
        normalize_by(normalizers.Replace(" ", "_")),
    ]
    assert [spent_after(change) for change in whole] == [len(text)] * len(whole)


@pytest.mark.parametrize(
    ("rows", "characters"), [(["日本語" * 100] * 4, 1200), (["model"] * 10_000, 50_000)]
)
def test_too_many_characters_are_refused(model, rows, characters):
    feeds = model.schema.from_columns({"text": rows})
    bounded = OnnxModel.load(model.artifact.folder)
    bounded.max_text_characters = characters - 1
    with refused(BodyTooLarge, "max_text_characters"):
        bounded.run(feeds)
    bounded.max_text_characters = characters
    assert len(bounded.run(feeds)["embedding"]) == len(rows)


def test_expired_texts_are_not_tokenized(model):
    with refused(DeadlineExceeded, "deadline"):
        model.run(model.schema.from_columns({"text": ["a", "b"]}), deadline=time.perf_counter())


def test_shorter_texts_are_padded(tmp_path):
    file = text_model(tmp_path / "model") / "tokenizer.json"
    feeds = TextTokenizer(TokenizerSpec(file, INPUTS, 32)).feeds(["the model", ""])
    # [CLS] [SEP] [PAD] …
    assert feeds["input_ids"][1].tolist() == [0, 1] + [2] * (feeds["input_ids"].shape[1] - 2)
    assert feeds["attention_mask"].sum(axis=1).tolist() == [feeds["input_ids"].shape[1], 2]
    assert feeds["input_ids"].dtype == np.int64


def test_the_prompt_precedes_each_text(tmp_path):
    prompted = OnnxModel.load(text_model(tmp_path / "prompted", prefix="query: "))
    plain = OnnxModel.load(text_model(tmp_path / "plain"))
    assert embed(prompted, "the model") == embed(plain, "query: the model")


def test_neighbours_do_not_change_an_answer(model):
    rows = [text[:200] for text in hostile_texts(400)]
    together = embed(model, *rows)
    assert together == [embed(model, text)[0] for text in rows]


def test_texts_of_different_lengths_are_batched(model):
    feeds = model.schema.from_columns({"text": ["the model answers a request", "a"]})
    assert unbatchable_reason(model, feeds) == ""


def test_long_tables_are_tokenized_in_parts(model):
    rows = ["model " * 20_000, "a", "request " * 20_000]
    assert embed(model, *rows) == [embed(model, text)[0] for text in rows]


def test_too_long_text_is_refused(tmp_path):
    model = OnnxModel.load(text_model(tmp_path / "model", max_length=8, truncates=False))
    with refused(InferenceError, "tokens", "8", "truncation"):
        embed(model, "a", "one two three four five six seven eight nine")
    with refused(InferenceError, "'look at /etc/passwd and then'"):
        embed(model, "look at /etc/passwd and then")
    with refused(InferenceError, "200001", "200000"):
        embed(model, "x" * 200_001)


def test_text_without_tokens_is_refused(tmp_path):
    folder = text_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    # as in GPT-2
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    model = OnnxModel.load(folder)
    with pytest.raises(InferenceError, check=lambda error: "shorten" not in str(error)):
        embed(model, "a", "")
    model.try_out(model.example_feeds(), seconds=60)


def test_tokenizer_panic_is_refused(tmp_path):
    model = OnnxModel.load(panicking_model(tmp_path / "model"))
    (alone,) = embed(model, "a text")
    with refused(InferenceError, repr(PANIC), "tokenized", "retry-limit-in-match over"):
        embed(model, "a text", PANIC, "another text")
    assert embed(model, "a text") == [alone]


def test_half_a_surrogate_pair_is_refused(model):
    with refused(InferenceError, "Unicode"):
        embed(model, "a", "\ud83d")


def test_damaged_tokenizer_file_is_refused(tmp_path):
    folder = text_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with refused(InvalidArtifact, "tokenizer.json"):
        OnnxModel.load(folder)
    (folder / "tokenizer.json").unlink()
    with refused(InvalidArtifact, "tokenizer.json"):
        read_artifact(folder)


def test_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    folder = text_model(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(NotInstalled, "tokenizers", "mlflow-onnxserve[text]"):
        OnnxModel.load(folder)


def test_texts_need_no_training_framework(tmp_path):
    folder = text_model(tmp_path / "model")
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'sentence_transformers', 'huggingface_hub', "
        "'mlflow', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from mlflow_deploy_plugin.serve.runtime.model import OnnxModel\n"
        "model = OnnxModel.load(Path(sys.argv[1]))\n"
        "print(model.run(model.schema.from_columns({'text': ['']}))['embedding'].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    # The mean of [CLS] and [SEP].
    assert (done.stdout.strip(), done.returncode) == ("[[0.5]]", 0), done.stderr
