"""Tests of text models with random weights: pipelines of transformers, and
SentenceTransformer.
"""

import json
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import sentence_transformers
    import tokenizers
    import torch
    import transformers
    from sentence_transformers.sentence_transformer import modules as parts

from mlflow_deploy_plugin.core.errors import ConversionError, InferenceError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.batcher import unbatchable_reason
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import wrap
from tests.support.refusals import refused
from tests.support.texts import hostile_texts, original_tokenizer
from tests.wrap.conftest import cases, proven

pytestmark = [
    pytest.mark.long,  # Importing and exporting a net takes seconds.
    pytest.mark.filterwarnings("ignore"),  # The exporter warns about future changes.
]


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Import what takes seconds only for these tests, not to collect them."""
    for name in ("tokenizers", "torch", "transformers", "sentence_transformers"):
        globals()[name] = pytest.importorskip(name)
    globals()["parts"] = sentence_transformers.sentence_transformer.modules


TEXTS = [
    "the model answers",
    "a request with many more words than the other requests have",
    "drift?",
]
LABELS = {0: "negative", 1: "neutral", 2: "positive"}
SMALL = {
    "vocab_size": 500,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 2,
    "id2label": LABELS,
}
NETS = {
    "BERT": (
        "WordPiece",
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
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
    start = [
        parts.Transformer(str(folder), do_lower_case=lower),
        parts.Pooling(16, pooling_mode=pooling),
    ]
    return sentence_transformers.SentenceTransformer(
        modules=[*start, *modules], device="cpu", **options
    )


def embed(model, texts):
    return model.run(model.schema.from_columns({"text": texts}))["embedding"]


def ask(model, texts, output):
    return model.run(model.schema.from_columns({"text": texts}))[output]


def report_of(model):
    return json.loads((model.artifact.folder / "parity.json").read_text())


def probabilities(pipeline, texts):
    """Return the scores of a pipeline, with the labels in their order."""
    answers = pipeline(texts, top_k=None)
    by_label = [{part["label"]: part["score"] for part in parts} for parts in answers]
    return pd.DataFrame(by_label)[list(LABELS.values())]


@pytest.mark.parametrize(
    ("net", "side"),
    [*((net, "right") for net in NETS), ("BERT", "left"), ("RoBERTa", "left"), ("GPT-2", "left")],
)
def test_classifier_answers_as_its_pipeline(net, side, saved):
    pipeline = classifier(net)
    pipeline.tokenizer.padding_side = side
    model = saved(pipeline, TEXTS)
    report = report_of(model)
    assert report["state"] == "proven"
    assert report["sources"]["vocabulary"] > 200  # hostile texts
    assert model.artifact.classes == tuple(LABELS.values())
    texts = [text for text in hostile_texts(50) if text]
    want = probabilities(pipeline, texts)
    np.testing.assert_allclose(ask(model, texts, "probabilities"), want, atol=1e-6)
    assert ask(model, texts, "label").tolist() == want.idxmax(axis=1).tolist()
    assert pipeline.tokenizer.padding_side == side


def test_pyfunc_returns_labels_or_probabilities(tmp_path):
    pipeline = classifier()
    table = pd.DataFrame({"review": TEXTS})
    save_model(pipeline, tmp_path / "labels", input_example=TEXTS)
    save_model(
        pipeline, tmp_path / "scores", input_example=table, pyfunc_predict_fn="predict_proba"
    )
    labels, scores = (
        mlflow.pyfunc.load_model(str(tmp_path / name)) for name in ("labels", "scores")
    )
    want = probabilities(pipeline, TEXTS)
    assert labels.predict(TEXTS).tolist() == want.idxmax(axis=1).tolist()
    np.testing.assert_allclose(scores.predict(table), want, atol=1e-6)
    assert scores.metadata.signature.inputs.input_names() == ["review"]


def test_several_labels_have_scores():
    several = classifier()
    several.model.config.problem_type = "multi_label_classification"
    outputs = {output.name: output.role for output in wrap(several, TEXTS).converted.outputs}
    assert outputs == {"label": "label", "scores": "values"}


def test_single_score_is_an_output():
    single = classifier()
    config = transformers.BertConfig(**SMALL | {"id2label": {0: "score"}})
    single.model = transformers.BertForSequenceClassification(config)
    outputs = proven(single, TEXTS).converted.outputs
    assert [(output.name, output.shape) for output in outputs] == [("score", (-1,))]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_embedding_includes_all_modules(pooling, tmp_path, saved):
    original = encoder(tmp_path / "net", parts.Dense(16, 8), parts.Normalize(), pooling=pooling)
    model = saved(original, TEXTS)
    texts = list(hostile_texts(60))
    got = embed(model, texts)
    assert got.shape == (60, 8)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, original.encode(texts), atol=1e-5)
    assert unbatchable_reason(model, model.schema.from_columns({"text": TEXTS})) == ""
    alone = np.concatenate([embed(model, [text]) for text in TEXTS])
    np.testing.assert_allclose(embed(model, TEXTS), alone, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
        {"truncate_dim": 4},
        {"do_lower_case": True},
    ],
    ids=["prompt", "truncated", "lower case"],
)
def test_embedding_follows_the_options(options, tmp_path, saved):
    original = encoder(tmp_path / "net", **options)
    original.max_seq_length = 12
    texts = [*TEXTS, "THE MODEL", "one two three four five six seven eight nine ten eleven twelve"]
    got = embed(saved(original, TEXTS), texts)
    np.testing.assert_allclose(got, original.encode(texts), atol=1e-5)


def last_position():
    """Return a pooling that ignores the mask, so it needs padding on the left."""

    class LastPosition(torch.nn.Module):  # type: ignore[misc]
        def forward(self, features, **_):
            features["sentence_embedding"] = features["token_embeddings"][:, -1]
            return features

    return LastPosition()


@pytest.mark.parametrize(
    "case", ["BERT", "decoder", "decoder without special tokens", "last position"]
)
def test_encoder_with_left_padding_is_proven(case, tmp_path, saved):
    torch.manual_seed(0)
    net = transformers.BertModel(transformers.BertConfig(**SMALL))
    if case != "BERT":
        config = transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8)
        net = transformers.Qwen3Model(config)
    net.save_pretrained(tmp_path / "net")
    tokenizer = original_tokenizer("WordPiece" if case == "BERT" else "BPE", padding_side="left")
    if case == "decoder without special tokens":
        tokenizer = without_special_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path / "net")
    pooling = (
        last_position() if case == "last position" else parts.Pooling(16, pooling_mode="lasttoken")
    )
    modules = [parts.Transformer(str(tmp_path / "net")), pooling]
    original = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")

    model = saved(original, TEXTS)

    report = report_of(model)
    assert report["state"] == "proven"
    assert report["sources"]["vocabulary"] > 200
    want = np.concatenate([original.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(embed(model, TEXTS), want, atol=1e-5)


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


def test_text_without_tokens_is_refused(tmp_path):
    pipeline = classifier()
    pipeline.tokenizer = without_special_tokens(pipeline.tokenizer)
    with refused(InvalidConfig, "input_example", "''", "no tokens"):
        wrap(pipeline, ["the model", ""])
    report = wrap(pipeline, TEXTS).report
    assert report.state == "proven"
    assert report.refused_by_original["vocabulary"] > 0


@pytest.mark.parametrize("net", ["BERT", "GPT-2"])
def test_one_token_examples_allow_longer_texts(net, saved):
    pipeline = classifier(net)
    vocabulary = {"<pad>": 0, "<unk>": 1, "good": 2, "bad": 3}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pipeline.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=32
    )
    pipeline.model.config.pad_token_id = 0

    model = saved(pipeline, ["good", "bad"])

    texts = ["good", "bad good bad", "good good"]
    assert ask(model, texts, "label").tolist() == [answer["label"] for answer in pipeline(texts)]


@pytest.mark.parametrize(("net", "longest"), [("BERT", 40), ("RoBERTa", 37)])
def test_too_long_text_is_refused(net, longest, saved):
    """RoBERTa numbers its positions from `pad_token_id + 1`. On a GPU, a larger number
    is not an error.
    """
    pipeline = classifier(net, truncation=False)
    model = saved(pipeline, TEXTS)
    texts = ["a " * count for count in range(20, 60)]
    lengths = {len(pipeline.tokenizer(text)["input_ids"]): text for text in texts}
    assert pipeline(lengths[longest])
    assert len(ask(model, [lengths[longest]], "label")) == 1
    with refused(RuntimeError):
        pipeline(lengths[longest + 1])
    with refused(InferenceError, f"{longest + 1}", f"{longest}", "truncation"):
        ask(model, [lengths[longest + 1]], "label")


def _of_task():
    plain = classifier()
    return transformers.pipeline(
        "feature-extraction", model=plain.model.base_model, tokenizer=plain.tokenizer
    )


def _of_tokenizer(tokenizer):
    pipeline = classifier()
    pipeline.tokenizer = tokenizer
    return pipeline


def _without_padding():
    pipeline = classifier()
    pipeline.tokenizer.pad_token = None
    return pipeline


def _static():
    vocabulary = {"[UNK]": 0, "a": 1}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    embedding = parts.StaticEmbedding(words, embedding_dim=4)
    return sentence_transformers.SentenceTransformer(modules=[embedding], device="cpu")


def _unlimited():
    pipeline = classifier()
    pipeline.tokenizer.model_max_length = int(1e30)
    pipeline.model.config.max_position_embeddings = -1
    return pipeline


REFUSED = {
    "task": (_of_task, ("feature-extraction", "SentenceTransformer")),
    "slow tokenizer": (
        lambda: _of_tokenizer(transformers.CanineTokenizer()),
        ("CanineTokenizer", "use_fast"),
    ),
    "plain tokenizer": (_static, ("Tokenizer is not a fast tokenizer",)),
    "padding": (_without_padding, ("pad_token",)),
    "length": (_unlimited, ("model_max_length",)),
    "options": (
        lambda: classifier(add_special_tokens=False),
        ("input_ids", "tokenizer.json"),
    ),
}


@pytest.mark.parametrize(("make", "words"), cases(REFUSED))
def test_unsupported_text_model_is_refused(make, words):
    with refused(ConversionError, *words):
        _convert(make(), TEXTS)


def test_pooling_without_the_prompt_is_refused(tmp_path):
    prompted = encoder(tmp_path / "net", prompts={"q": "query: "}, default_prompt_name="q")
    prompted.set_pooling_include_prompt(False)
    with refused(ConversionError, "include_prompt"):
        _convert(prompted, TEXTS)


def test_data_other_than_texts_are_refused(tmp_path):
    from mlflow_deploy_plugin.wrap.convert.transformers import forms, read_batch

    for data in ([1, 2], [("a", "b")], pd.DataFrame({"a": ["x"], "b": ["y"]}), [None]):
        with refused(InvalidConfig, "input_example", "texts"):
            read_batch(classifier(), data)
    with refused(InvalidConfig, "pyfunc_predict_fn"):
        forms(encoder(tmp_path / "net"), read_batch(None, TEXTS), "predict_proba", {})


def _convert(model, texts):
    from mlflow_deploy_plugin.wrap.convert.transformers import forms, read_batch

    for form in forms(model, read_batch(model, texts), "predict", {}):
        form()
