"""Tests of text models with random weights: pipelines of transformers, and
SentenceTransformer.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import sentence_transformers
    import tokenizers
    import torch
    import transformers
else:
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)

from mlflow_deploy_plugin.core.errors import ConversionError, InferenceError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.batcher import unbatchable_reason
from mlflow_deploy_plugin.wrap.convert.transformers import forms, read_batch
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.support.texts import hostile_texts, original_tokenizer

pytestmark = [
    pytest.mark.long,  # Importing and exporting a net takes seconds.
    pytest.mark.filterwarnings("ignore"),  # The exporter warns about future changes.
]

TEXTS = [
    "the model answers",
    "a request with many more words than the other requests have",
    "drift?",
]
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 2,
    "id2label": LABELS,
}
NETS: dict[str, tuple[str, Callable[[], Any]]] = {
    "BERT": (
        "WordPiece",
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    ),
    "DistilBERT": (
        "WordPiece",
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(
                vocab_size=500,
                dim=16,
                n_layers=2,
                n_heads=2,
                hidden_dim=32,
                max_position_embeddings=40,
                id2label=LABELS,
            )
        ),
    ),
    "RoBERTa": (
        "BPE",
        lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SMALL)),
    ),
    "GPT-2": (
        "BPE",
        lambda: transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=500,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=40,
                pad_token_id=2,
                id2label=LABELS,
            )
        ),
    ),
    "XLM-RoBERTa": (
        "Unigram",
        lambda: transformers.XLMRobertaForSequenceClassification(
            transformers.XLMRobertaConfig(**SMALL)
        ),
    ),
    "DeBERTa": (
        "Unigram",
        lambda: transformers.DebertaV2ForSequenceClassification(
            transformers.DebertaV2Config(
                **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]
            )
        ),
    ),
    "ModernBERT": (
        "BPE",
        lambda: transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(
                **SMALL, bos_token_id=0, eos_token_id=1, cls_token_id=0, sep_token_id=1
            )
        ),
    ),
}


def classifier(net="BERT", **options):
    torch.manual_seed(0)
    kind, make = NETS[net]
    return transformers.pipeline(
        "text-classification",
        model=make().eval(),
        tokenizer=original_tokenizer(kind),
        **{"truncation": True, **options},
    )


def encoder(folder, *modules, pooling="mean", **options):
    """Return a SentenceTransformer with BERT, a pooling, and more modules."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(folder)
    original_tokenizer("WordPiece").save_pretrained(folder)
    lower = options.pop("do_lower_case", False)
    start = [Transformer(str(folder), do_lower_case=lower), Pooling(16, pooling_mode=pooling)]
    return sentence_transformers.SentenceTransformer(
        modules=[*start, *modules], device="cpu", **options
    )


def embed(model, texts):
    return model.run(model.schema.from_columns({"text": texts}))["embedding"]


@pytest.mark.parametrize("net", NETS)
def test_a_classifier_answers_as_its_pipeline(net, tmp_path):
    pipeline = classifier(net)
    save_model(pipeline, tmp_path / "model", input_example=TEXTS)
    report = json.loads((tmp_path / "model" / "parity.json").read_text())
    assert report["state"] == "proven"
    assert report["sources"]["vocabulary"] > 200  # hostile texts
    texts = [text for text in hostile_texts(50) if text]
    answers = pipeline(texts, top_k=None)
    got = load_model(str(tmp_path / "model"))
    assert got.artifact.classes == tuple(LABELS.values())
    outputs = got.run(got.schema.from_columns({"text": texts}))
    assert outputs["label"].tolist() == [parts[0]["label"] for parts in answers]
    by_label = [{part["label"]: part["score"] for part in parts} for parts in answers]
    want = pd.DataFrame(by_label)[list(LABELS.values())]
    np.testing.assert_allclose(outputs["probabilities"], want, atol=1e-6)


def test_a_pyfunc_returns_labels_or_probabilities(tmp_path):
    pipeline = classifier()
    save_model(pipeline, tmp_path / "labels", input_example=TEXTS)
    save_model(
        pipeline,
        tmp_path / "scores",
        input_example=pd.DataFrame({"review": TEXTS}),
        pyfunc_predict_fn="predict_proba",
    )
    labels, scores = (
        mlflow.pyfunc.load_model(str(tmp_path / name)) for name in ("labels", "scores")
    )
    assert labels.predict(TEXTS).tolist() == [answer["label"] for answer in pipeline(TEXTS)]
    rows = scores.predict(pd.DataFrame({"review": TEXTS}))
    np.testing.assert_allclose(
        rows.max(axis=1), [answer["score"] for answer in pipeline(TEXTS)], atol=1e-6
    )
    assert scores.metadata.signature.inputs.input_names() == ["review"]


def test_several_labels_and_a_single_score_have_their_own_outputs():
    several = classifier()
    several.model.config.problem_type = "multi_label_classification"
    outputs = {output.name: output.role for output in wrap(several, TEXTS).converted.outputs}
    assert outputs == {"label": "label", "scores": "values"}
    single = transformers.pipeline(
        "text-classification",
        model=transformers.BertForSequenceClassification(
            transformers.BertConfig(**SMALL | {"id2label": {0: "score"}})
        ),
        tokenizer=original_tokenizer("WordPiece"),
        truncation=True,
    )
    wrapped = wrap(single, TEXTS)
    assert [(output.name, output.shape) for output in wrapped.converted.outputs] == [
        ("score", (-1,))
    ]
    assert wrapped.report.state == "proven"


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_an_embedding_includes_pooling_and_later_modules(pooling, tmp_path):
    original = encoder(tmp_path / "net", Dense(16, 8), Normalize(), pooling=pooling)
    save_model(original, tmp_path / "model", input_example=TEXTS)
    texts = list(hostile_texts(60))
    got = embed(load_model(str(tmp_path / "model")), texts)
    assert got.shape == (60, 8)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, original.encode(texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
        {"truncate_dim": 4},
        {"do_lower_case": True},
    ],
    ids=["prompt", "truncated", "lower case"],
)
def test_an_embedding_follows_the_options_of_its_encoder(options, tmp_path):
    original = encoder(tmp_path / "net", **options)
    original.max_seq_length = 12
    save_model(original, tmp_path / "model", input_example=TEXTS)
    texts = [
        *TEXTS,
        "THE MODEL",
        "one two three four five six seven eight nine ten eleven twelve thirteen",
    ]
    np.testing.assert_allclose(
        embed(load_model(str(tmp_path / "model")), texts), original.encode(texts), atol=1e-5
    )


def test_a_batch_of_different_lengths_has_the_answers_of_single_texts(tmp_path):
    original = encoder(tmp_path / "net")
    save_model(original, tmp_path / "model", input_example=TEXTS)
    model = load_model(str(tmp_path / "model"))
    assert unbatchable_reason(model, model.schema.from_columns({"text": TEXTS})) == ""
    alone = np.concatenate([embed(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(model, TEXTS), alone, atol=1e-5)


@pytest.mark.parametrize("net", ["BERT", "RoBERTa", "GPT-2"])
def test_a_classifier_with_padding_on_the_left_answers_as_its_pipeline(net, tmp_path):
    pipeline = classifier(net)
    pipeline.tokenizer.padding_side = "left"
    save_model(pipeline, tmp_path / "model", input_example=TEXTS)
    report = json.loads((tmp_path / "model" / "parity.json").read_text())
    assert report["state"] == "proven"
    answers = [
        {part["label"]: part["score"] for part in parts} for parts in pipeline(TEXTS, top_k=None)
    ]
    want = pd.DataFrame(answers)[list(LABELS.values())]
    got = load_model(str(tmp_path / "model"))
    np.testing.assert_allclose(
        got.run(got.schema.from_columns({"text": TEXTS}))["probabilities"], want, atol=1e-6
    )
    assert pipeline.tokenizer.padding_side == "left"


class LastPosition(torch.nn.Module):  # type: ignore[misc]
    """A pooling that ignores the mask, so it needs padding on the left."""

    def forward(self, features: dict[str, Any], **_: object) -> dict[str, Any]:
        features["sentence_embedding"] = features["token_embeddings"][:, -1]
        return features


@pytest.mark.parametrize(
    "case", ["BERT", "decoder", "decoder without special tokens", "last position"]
)
def test_an_encoder_with_padding_on_the_left_answers_as_for_a_single_text(case, tmp_path):
    torch.manual_seed(0)
    if case == "BERT":
        net = transformers.BertModel(transformers.BertConfig(**SMALL))
    else:
        config = transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)
        net = transformers.Qwen3Model(config)
    net.save_pretrained(tmp_path / "net")
    tokenizer = original_tokenizer("WordPiece" if case == "BERT" else "BPE", padding_side="left")
    if case == "decoder without special tokens":
        tokenizer = without_special_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path / "net")
    pooling = LastPosition() if case == "last position" else Pooling(16, pooling_mode="lasttoken")
    modules = [Transformer(str(tmp_path / "net")), pooling]
    original = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")

    save_model(original, tmp_path / "model", input_example=TEXTS)

    report = json.loads((tmp_path / "model" / "parity.json").read_text())
    assert report["state"] == "proven"
    assert report["sources"]["vocabulary"] > 200
    want = np.concatenate([original.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(embed(load_model(str(tmp_path / "model")), TEXTS), want, atol=1e-5)


def without_special_tokens(tokenizer):
    """Return the tokenizer without its post-processor, so that an empty text has no
    tokens.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(content)),
        pad_token=tokenizer.pad_token,
        unk_token=tokenizer.unk_token,
        model_max_length=32,
        padding_side=tokenizer.padding_side,
    )


def test_a_text_without_tokens_is_refused_by_the_example_and_does_not_prevent_the_proof(tmp_path):
    pipeline = classifier()
    pipeline.tokenizer = without_special_tokens(pipeline.tokenizer)
    with refused(InvalidConfig, "input_example", "''", "no tokens"):
        wrap(pipeline, ["the model", ""])
    report = wrap(pipeline, TEXTS).report
    assert report.state == "proven"
    assert report.refused_by_original["vocabulary"] > 0


@pytest.mark.parametrize("net", ["BERT", "GPT-2"])
def test_a_model_whose_examples_have_one_token_answers_longer_texts(net, tmp_path):
    pipeline = classifier(net)
    vocabulary = {"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pipeline.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=32
    )
    pipeline.model.config.pad_token_id = 0

    save_model(pipeline, tmp_path / "model", input_example=["good", "bad"])

    model = load_model(str(tmp_path / "model"))
    texts = ["good", "bad good bad", "good good"]
    got = model.run(model.schema.from_columns({"text": texts}))["label"].tolist()
    assert got == [answer["label"] for answer in pipeline(texts)]


def test_a_text_that_the_pipeline_does_not_truncate_is_refused(tmp_path):
    pipeline = classifier(truncation=False)
    long = "model " * 60
    save_model(pipeline, tmp_path / "model", input_example=TEXTS)
    model = load_model(str(tmp_path / "model"))
    with pytest.raises(RuntimeError):
        pipeline(long)
    with refused(InferenceError, "tokens", "40", "truncation"):
        model.run(model.schema.from_columns({"text": [long]}))


def test_positions_before_the_first_token_shorten_the_longest_text(tmp_path):
    """RoBERTa numbers its positions from `pad_token_id + 1`. On a GPU, a larger number
    is not an error.
    """
    pipeline = classifier("RoBERTa", truncation=False)
    save_model(pipeline, tmp_path / "model", input_example=TEXTS)
    model = load_model(str(tmp_path / "model"))
    lengths = {
        len(pipeline.tokenizer(text)["input_ids"]): text
        for text in ("a " * count for count in range(20, 60))
    }
    assert pipeline(lengths[37])
    assert len(model.run(model.schema.from_columns({"text": [lengths[37]]}))["label"]) == 1
    with pytest.raises(RuntimeError):
        pipeline(lengths[38])
    with refused(InferenceError, "38", "37", "truncation"):
        model.run(model.schema.from_columns({"text": [lengths[38]]}))


def test_a_model_without_a_supported_tokenizer_or_task_is_refused_with_a_remedy(tmp_path):
    convert = partial(_convert, texts=TEXTS)
    plain = classifier()
    features = transformers.pipeline(
        "feature-extraction", model=plain.model.base_model, tokenizer=plain.tokenizer
    )
    with refused(ConversionError, "feature-extraction", "SentenceTransformer", "Pooling"):
        convert(features)
    slow = classifier()
    slow.tokenizer = transformers.CanineTokenizer()
    with refused(ConversionError, "CanineTokenizer", "use_fast"):
        convert(slow)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    )
    static = sentence_transformers.SentenceTransformer(
        modules=[StaticEmbedding(words, embedding_dim=4)], device="cpu"
    )
    with refused(ConversionError, "Tokenizer is not a fast tokenizer"):
        convert(static)
    unpadded = classifier()
    unpadded.tokenizer.pad_token = None
    with refused(ConversionError, "pad_token"):
        convert(unpadded)
    unlimited = classifier("DistilBERT")
    unlimited.tokenizer.model_max_length, unlimited.model.config.max_position_embeddings = (
        int(1e30),
        -1,
    )
    with refused(ConversionError, "model_max_length"):
        convert(unlimited)
    with refused(ConversionError, "input_ids", "tokenizer.json"):
        convert(classifier(add_special_tokens=False))
    prompted = encoder(tmp_path / "net", prompts={"q": "query: "}, default_prompt_name="q")
    prompted.set_pooling_include_prompt(False)
    with refused(ConversionError, "include_prompt"):
        convert(prompted)


def test_other_data_than_texts_is_refused(tmp_path):
    for data in ([1, 2], [("a", "b")], pd.DataFrame({"a": ["x"], "b": ["y"]}), [None]):
        with refused(InvalidConfig, "input_example", "texts"):
            read_batch(classifier(), data)
    with refused(InvalidConfig, "pyfunc_predict_fn"):
        forms(encoder(tmp_path / "net"), read_batch(None, TEXTS), "predict_proba", {})


def _convert(model, texts):
    for form in forms(model, read_batch(model, texts), "predict", {}):
        form()
