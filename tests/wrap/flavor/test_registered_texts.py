"""`wrap` of a version that MLflow's flavors for texts have logged: the settings of the
version, and its rows.
"""

import json
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

if TYPE_CHECKING:
    import sentence_transformers
    import torch
    import transformers

import onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidArtifact
from mlflow_deploy_plugin.wrap.flavor.example_rows import read_rows
from tests.support.refusals import refused
from tests.support.texts import original_tokenizer

pytestmark = [
    pytest.mark.long,  # Importing and exporting a net takes seconds.
    pytest.mark.filterwarnings("ignore"),  # The exporter warns about future changes.
]

TEXTS = [
    "the model answers",
    "a request with many more words than the other requests have",
    "drift?",
    "the monitor",
]
REQUIREMENTS = {"pip_requirements": []}
SMALL = {
    "vocab_size": 500,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 1.0,  # The labels of the texts differ.
    "id2label": {0: "negative", 1: "neutral", 2: "positive"},
}
TEXT = Schema([ColSpec("string")])


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Import what takes seconds only for these tests, not to collect them."""
    for name in ("torch", "transformers", "sentence_transformers"):
        globals()[name] = pytest.importorskip(name)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    # MLflow asks the hub for a license.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)).eval()
    return transformers.pipeline(
        "text-classification", model=net, tokenizer=original_tokenizer("WordPiece")
    )


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path / "net")
    original_tokenizer("WordPiece").save_pretrained(tmp_path / "net")
    parts = sentence_transformers.sentence_transformer.modules
    modules = [parts.Transformer(str(tmp_path / "net")), parts.Pooling(16, pooling_mode="mean")]
    prompts = {"q": "the query: "}
    return sentence_transformers.SentenceTransformer(modules=modules, device="cpu", prompts=prompts)


def params(**defaults):
    types = {bool: "boolean", int: "long", str: "string"}
    specs = [ParamSpec(name, types[type(value)], value) for name, value in defaults.items()]
    return ModelSignature(TEXT, params=ParamSchema(specs))


def saved_classifier(model, folder, **options):
    mlflow.transformers.save_model(model, folder, **REQUIREMENTS, **options)
    return folder


def saved_encoder(model, folder, **options):
    mlflow.sentence_transformers.save_model(model, folder, **REQUIREMENTS, **options)
    return folder


def wrapped(folder, **options):
    made = onnxserve.wrap_model(str(folder), "texts", data=TEXTS, **options)
    return made, mlflow.pyfunc.load_model(f"models:/texts/{made.version}")


def labels(folder):
    """Return the labels of MLflow's own pyfunc."""
    return mlflow.pyfunc.load_model(str(folder)).predict(TEXTS)["label"].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"model_config": {"truncation": True, "max_length": 4}},
        {"model_config": {"truncation": True, "max_length": 20}, "signature": params(max_length=4)},
        {"model_config": {"max_length": 4}},
        {"model_config": {"padding": "max_length", "truncation": True, "max_length": 32}},
        {
            "model_config": {"truncation": True, "max_length": 4, "top_k": 1},
            "signature": ModelSignature(TEXT),
        },
    ],
    ids=["model_config", "params before model_config", "without truncation", "padding", "top_k=1"],
)
def test_classifier_has_the_saved_settings(options, classifier, tracking, tmp_path):
    folder = saved_classifier(
        classifier, tmp_path / "saved", **{"signature": ModelSignature(TEXT), **options}
    )
    config = {**options["model_config"], "top_k": None}
    if "signature" in options and options["signature"].params:
        config["max_length"] = 4
    answers = [[part["label"] for part in parts] for parts in classifier(TEXTS, **config)]

    made, served = wrapped(folder)

    assert made.report.state == "proven"
    assert served.predict(TEXTS).tolist() == [names[0] for names in answers]
    if "top_k" not in options["model_config"]:
        assert labels(folder) == [names[0] for names in answers]


def test_older_settings_replace_the_model_config(classifier, tracking, tmp_path):
    options = {"truncation": True, "max_length": 20}
    folder = saved_classifier(
        classifier, tmp_path / "saved", signature=ModelSignature(TEXT), model_config=options
    )
    plain = labels(folder)
    (folder / "components" / "inference_config.txt").write_text(
        json.dumps({"truncation": True, "max_length": 4})
    )
    assert labels(folder) != plain

    assert wrapped(folder)[1].predict(TEXTS).tolist() == labels(folder)


@pytest.mark.parametrize("content", [b"{", b"[4]", b"\xff"])
def test_damaged_settings_are_refused(content, classifier, tracking, tmp_path):
    folder = saved_classifier(classifier, tmp_path / "saved", signature=ModelSignature(TEXT))
    (folder / "components" / "inference_config.txt").write_bytes(content)
    with refused(InvalidArtifact, "inference_config.txt"):
        onnxserve.wrap_model(str(folder), data=TEXTS, dry_run=True)


def test_function_of_logits_is_kept(classifier, tracking, tmp_path):
    config = {"function_to_apply": "sigmoid"}
    folder = saved_classifier(
        classifier, tmp_path / "saved", signature=ModelSignature(TEXT), model_config=config
    )
    made, served = wrapped(folder)
    assert [output.name for output in made.outputs] == ["label", "scores"]
    assert served.predict(TEXTS).tolist() == labels(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"top_k": 2}, ("top_k=2", "predict_proba")),
        ({"add_special_tokens": False}, ("add_special_tokens=False",)),
        ({"function_to_apply": "tanh"}, ("function_to_apply='tanh'",)),
    ],
)
def test_unsupported_classifier_setting_is_refused(config, words, classifier, tmp_path):
    saved = saved_classifier(
        classifier, tmp_path / "saved", model_config=config, signature=ModelSignature(TEXT)
    )
    with refused(ConversionError, *words, "pyfunc"):
        onnxserve.wrap_model(str(saved), data=TEXTS, dry_run=True)
    if "top_k" in config:
        made = onnxserve.wrap_model(
            str(saved), data=TEXTS, dry_run=True, pyfunc_predict_fn="predict_proba"
        )
        assert made.report.state == "proven"
        assert made.prediction == ("probabilities",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "llm/v1/embeddings"}, ("task='llm/v1/embeddings'",)),
        ({"signature": params(precision="int8")}, ("precision='int8'",)),
        ({"signature": params(prompt_name="p")}, ("prompt_name='p'", "'q'")),
    ],
    ids=["task", "precision", "prompt"],
)
def test_unsupported_encoder_setting_is_refused(options, words, encoder, tmp_path):
    saved = saved_encoder(encoder, tmp_path / "saved", **options)
    with refused(ConversionError, *words, "pyfunc"):
        onnxserve.wrap_model(str(saved), data=TEXTS, dry_run=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"normalize_embeddings": True, "truncate_dim": 5, "batch_size": 2},
        {"truncate_dim": 5, "precision": "float32"},
        {"prompt_name": "q"},
        {"prompt": "the answer: ", "prompt_name": "q"},
    ],
    ids=["truncated and normalized", "truncated", "named prompt", "prompt"],
)
def test_encoder_has_the_default_params(asked, encoder, tracking, tmp_path):
    want = encoder.encode(TEXTS, **asked)
    assert want.shape != (4, 16) or np.abs(want - encoder.encode(TEXTS)).max() > 0.01
    folder = saved_encoder(encoder, tmp_path / "saved", signature=params(**asked))
    np.testing.assert_allclose(
        mlflow.pyfunc.load_model(str(folder)).predict(TEXTS), want, atol=1e-6
    )

    made, served = wrapped(folder)

    assert made.report.state == "proven"
    np.testing.assert_allclose(served.predict(TEXTS), want, atol=1e-5)
    name, value = next(iter(asked.items()))
    assert any(
        f"{name}={value!r}" in note and "always uses their defaults" in note
        for note in made.warnings
    )


@pytest.mark.parametrize("name", ["texts.csv", "nothing"])
def test_unnamed_input_takes_a_column(name, classifier, tmp_path):
    options = {"signature": ModelSignature(TEXT), "model_config": {"truncation": True}}
    folder = saved_classifier(classifier, tmp_path / "saved", **options)
    pd.DataFrame({"review": TEXTS}).to_csv(tmp_path / "texts.csv", index=False)
    rows = read_rows(tmp_path / "texts.csv") if name == "texts.csv" else None

    made = onnxserve.wrap_model(str(folder), data=rows, dry_run=True)

    assert made.report.state == "proven"
    assert made.report.sources["example"] == (500 if rows is None else 4)
    assert [(entry.dtype, entry.shape) for entry in made.inputs] == [("str", (-1,))]
