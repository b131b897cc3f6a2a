"""Convert text models of transformers and sentence-transformers: the tokenizer as a
file, and the net as a graph.

The graph includes pooling, normalization and the function that turns logits into
scores. The tokenizer is the file of a fast tokenizer, which
`serve/runtime/tokenizer.py` runs without torch. Its arrays are compared with the
original's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
import transformers
from onnx import ModelProto, TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Role, TokenizerSpec
from mlflow_deploy_plugin.serve.runtime.feeds import Array, object_array
from mlflow_deploy_plugin.serve.runtime.tokenizer import TextTokenizer
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert import torch as torch_converter
from mlflow_deploy_plugin.wrap.convert.batch import ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    Settings,
    TrainedModel,
)

_FILE = "tokenizer.json"
_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")
_HOSTILE = (
    "|  |\t|\r\n"
    "|\x00|a\x00b|\x07\x1b[0m|\u200b|\ufeff|\ufffd|\ue000|\U0010ffff|\u3000|\u00a0|\u2028|é|e\u0301|\u0301|İ|ß|ﬁ|Ⅷ|½|\u212a|ǅ|ϴ|\u1e9e|\ufdfa|👩\u200d👩\u200d👧|🇩🇪🇩|👍🏽|☃️|日本語|中文字符|한국어|각|ไทย|हिन्दी|עברית|\u202eabc\u202c|don't|U.S.A.|a_b-c/d|1,234.50€|http://x.y/?q=1#z|…|``''|[CLS]|[SEP]|[PAD]|[MASK]|[UNK]|<s>|</s>|<pad>|<unk>|<mask>|▁|##ing|"
    + "A" * 101
    + "|"
    + "!? " * 50
).split("|")
"""Texts that tokenizers treat in different ways."""
_HOSTILE_TEXTS = 2_000  # random combinations that are tokenized
_UNLIMITED_TOKENS = 10**6

_WITHOUT_EFFECT = (
    # of pipelines
    "batch_size",
    "num_workers",
    "include_prompt",
    "collapse_whitespace",
    # of `encode`
    "show_progress_bar",
    "convert_to_numpy",
    "convert_to_tensor",
    "device",
    "pool",
    "chunk_size",
)
"""The settings that change neither a label nor a number."""

NamedTensors: TypeAlias = dict[str, torch.Tensor]

_ENCODER_DEFAULTS = {"output_value": "sentence_embedding", "precision": "float32"}


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table with a single column of texts. Raises InvalidConfig for other
    data.
    """
    table: pd.DataFrame = data
    if not isinstance(data, pd.DataFrame):
        texts = [data] if isinstance(data, str) else list(data)
        column = getattr(data, "name", None) or "text"
        table = pd.DataFrame({column: pd.Series(texts, dtype=object)})
    if table.shape[1] != 1 or not all(isinstance(text, str) for text in table.iloc[:, 0]):
        raise InvalidConfig(
            f"input_example: {type(model).__name__} needs a list of texts, or a table with one "
            "column"
        )
    return table


def forms(
    model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return one form, the exported net. Raises InvalidConfig or ConversionError if the
    model is not supported.
    """
    if isinstance(model, transformers.TextClassificationPipeline):
        net = _Classifier(model)
    elif isinstance(model, SentenceTransformer):
        net = _Encoder(model)
    else:
        task = getattr(model, "task", type(model).__name__)
        raise ConversionError(
            f"a {task} model cannot be converted to ONNX: "
            "supported are text-classification pipelines and SentenceTransformer; for embeddings, "
            "SentenceTransformer(modules=[Transformer(path), Pooling(size)]) defines the pooling"
        )
    method = "predict" if net.output == "probabilities" else predict_fn
    table = converted.require_example(batch, method, type(model).__name__, "predict")
    if not getattr(net.tokenizer, "is_fast", False):
        raise ConversionError(
            f"its {type(net.tokenizer).__name__} is not a fast tokenizer of transformers: load it "
            "with use_fast=True"
        )
    sides = ["right"]
    if net.tokenizer.padding_side == "left":
        # Most nets number their positions from the left, so a text has its own answer
        # only with padding on the right. A pooling that reads the last position
        # regardless of the mask needs the padding on the left.
        sides.append("left")
    return [partial(_convert, model, net, table, predict_fn, side) for side in sides]


def asked_with(model: TrainedModel, settings: Settings, predict_fn: str) -> TrainedModel:
    """Return the model with the arguments that MLflow passes with each request.

    Raises ConversionError for an argument whose effect a graph cannot contain.
    """
    options = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
    if isinstance(model, transformers.TextClassificationPipeline):
        label_count = options.pop("top_k", 1)
        if label_count != 1 and predict_fn == "predict":
            raise ConversionError(
                f"it is asked with top_k={label_count}, so it returns several labels per text, and "
                "`predict` of an ONNX form returns one: use --predict-fn predict_proba (in Python "
                "pyfunc_predict_fn=) for the probabilities of all labels, or log the version "
                "without top_k"
            )
        try:
            preprocess, _, postprocess = model._sanitize_parameters(**options)
        except Exception as error:
            raise ConversionError(
                f"its pipeline refuses the arguments {_described(options)}: {one_line(error)}"
            ) from error
        model._preprocess_params |= preprocess
        model._postprocess_params |= postprocess
        return model
    if not isinstance(model, SentenceTransformer):
        return model  # `forms` refuses such a model.
    remaining = {name: value for name, value in options.items() if value is not None}
    prompt = remaining.pop("prompt", None)
    prompt_name = remaining.pop("prompt_name", None)
    size = remaining.pop("truncate_dim", None)
    is_normalized = remaining.pop("normalize_embeddings", False)
    for name, value in remaining.items():
        if _ENCODER_DEFAULTS.get(name) != value:
            raise ConversionError(
                f"it is asked with {name}={value!r}, which an ONNX form cannot contain: log the "
                f"version without {name}"
            )
    if prompt is not None:
        model.prompts["asked"] = prompt
        model.default_prompt_name = "asked"
    elif prompt_name is not None:
        if prompt_name not in model.prompts:
            raise ConversionError(
                f"it is asked with prompt_name={prompt_name!r}, which is not one of its prompts "
                f"({', '.join(map(repr, model.prompts)) or 'none'})"
            )
        model.default_prompt_name = prompt_name
    if size is not None:
        model.truncate_dim = size
    if is_normalized:
        if model.truncate_dim is not None:
            model.append(_Truncation(model.truncate_dim))
        model.append(Normalize())
    return model


def _described(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class _Truncation(torch.nn.Module):  # type: ignore[misc]
    """The first values of an embedding. `encode` truncates before it normalizes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def forward(self, features: NamedTensors, **_: object) -> NamedTensors:
        features["sentence_embedding"] = features["sentence_embedding"][:, : self._size]
        return features


class _Classifier(torch.nn.Module):  # type: ignore[misc]
    """A text-classification pipeline and its net with scores. `names` are the inputs of
    `forward`, in order.
    """

    prefix = ""
    names: Sequence[str] = ()

    def __init__(self, pipeline: TrainedModel) -> None:
        super().__init__()
        config = pipeline.model.config
        self.stands_for = type(pipeline).__name__
        self.original = pipeline
        self.net = pipeline.model
        self.tokenizer = pipeline.tokenizer
        self.options: Mapping[str, Any] = pipeline._preprocess_params
        self.all_labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        is_single = len(self.all_labels) == 1
        # These are the rules of TextClassificationPipeline.postprocess, unless the user
        # chose a function.
        function: str = getattr(pipeline._postprocess_params.get("function_to_apply"), "value", "")
        if not function:
            problem_type = pipeline.model.config.problem_type
            if problem_type == "regression":
                function = "none"
            elif problem_type == "multi_label_classification" or is_single:
                function = "sigmoid"
            else:
                function = "softmax"
        activations = {
            "softmax": partial(torch.softmax, dim=-1),
            "sigmoid": torch.sigmoid,
            "none": torch.nn.Identity(),
        }
        self._activate = activations[function]
        if is_single:
            self.output = "score"
        elif function == "softmax":
            self.output = "probabilities"
        else:
            self.output = "scores"
        self.labels = () if is_single else self.all_labels

    def forward(self, *tensors: torch.Tensor) -> NamedTensors:
        arguments = dict(zip(self.names, tensors, strict=True))
        scores = self._activate(self.net(**arguments).logits.float())
        if not self.labels:
            scores = scores[:, 0]
        return {self.output: scores}

    def predict(self, texts: list[str]) -> dict[str, Array]:
        """Return the scores [N, labels] of the pipeline, and its labels [N]; for a
        single label, only its scores [N].
        """
        # The pipeline returns the labels of a text in the order of their scores.
        answers = self.original(texts, top_k=None, batch_size=1)
        rows = []
        for parts in answers:
            by_label = {part["label"]: part["score"] for part in parts}
            rows.append([by_label[label] for label in self.all_labels])
        scores = np.array(rows, np.float32)
        if not self.labels:
            return {self.output: scores[:, 0]}
        return {
            "label": object_array([parts[0]["label"] for parts in answers]),
            self.output: scores,
        }

    def tokenize(self, texts: list[str]) -> Mapping[str, Any]:
        options = {**self.options, "padding": True, "return_tensors": "np"}
        if options.get("max_length") is not None and "padding" not in self.options:
            options.setdefault("truncation", True)  # A tokenizer that does not pad does the same.
        return dict(self.tokenizer(texts, **options))


class _Encoder(torch.nn.Module):  # type: ignore[misc]
    """A SentenceTransformer, like `_Classifier`."""

    names: Sequence[str] = ()
    labels: tuple[str, ...] = ()
    output = "embedding"
    options: Mapping[str, Any] = {}

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.stands_for = type(model).__name__
        self.net = model
        self.tokenizer = model.tokenizer
        self.prefix: str = model.prompts.get(model.default_prompt_name) or ""
        if self.prefix and any(not getattr(module, "include_prompt", True) for module in model):
            raise ConversionError(
                "its pooling leaves out the prompt (include_prompt=False), which a graph cannot do"
            )

    def forward(self, *tensors: torch.Tensor) -> NamedTensors:
        embedding = self.net(dict(zip(self.names, tensors, strict=True)))["sentence_embedding"]
        return {self.output: embedding[:, : self.net.truncate_dim].float()}

    def predict(self, texts: list[str]) -> dict[str, Array]:
        # In a batch, padding on the left would shift the positions of shorter texts.
        size = 1 if self.tokenizer.padding_side == "left" else 32
        return {self.output: self.net.encode(texts, batch_size=size, show_progress_bar=False)}

    def tokenize(self, texts: list[str]) -> Mapping[str, Any]:
        return dict(self.net.preprocess(texts, prompt=self.prefix or None))


def _convert(
    model: TrainedModel, net: "_Classifier | _Encoder", batch: Any, predict_fn: str, side: str
) -> ConvertedModel:
    """Return the graph of the net with its tokenizer, padded on the `side`: left or
    right. The batch is a table with one column of texts.
    """
    column = str(batch.columns[0])
    texts = batch.iloc[:, 0].tolist()
    side_before = net.tokenizer.padding_side
    net.tokenizer.padding_side = side
    try:
        spec, content = _saved_tokenizer(net.eval(), texts)
        tokens = net.tokenize(texts)
    finally:
        net.tokenizer.padding_side = side_before
    # The last call set the tokenizer's truncation.
    longest = None if net.tokenizer.backend_tokenizer.truncation else spec.max_length
    net.names = list(spec.graph_inputs)
    package = type(model).__module__.partition(".")[0]
    bound = converted.bind_graph(
        _export(net, tokens),
        batch=None,
        framework=package,
        framework_version=version(package.replace("_", "-")),
        original=_original_model(net, longest),
    )
    roles: dict[str, Role] = {"label": "label", "probabilities": "probabilities"}
    prediction = net.output if predict_fn == "predict_proba" else bound.outputs[0].name
    return replace(
        bound,
        inputs=(Input(column, dtype="str", shape=(-1,), columns=(column,)),),
        outputs=tuple(
            replace(entry, role=roles.get(entry.name, "values")) for entry in bound.outputs
        ),
        prediction=(prediction,),
        classes=net.labels,
        boundary_values=converted.BoundaryValues(texts={column: tuple(_HOSTILE)}),
        move_weights=partial(torch_converter.move_weights, net),
        tokenizer=spec,
        files={_FILE: content},
    )


def _export(net: "_Classifier | _Encoder", tokens: Mapping[str, Any]) -> ModelProto:
    """Return the graph of the net for its arrays and, for a classifier, the label."""
    names = list(net.names)
    arrays = {name: np.asarray(array) for name, array in tokens.items() if name in names}
    if arrays["input_ids"].shape[1] == 1:  # The exporter would fix the length 1.
        arrays = {name: np.repeat(array, 2, axis=1) for name, array in arrays.items()}
    proto = torch_converter.export(
        net, arrays, names, dict.fromkeys(names, (1,)), torch_converter.original_model(net)
    )
    if net.labels:
        graph = proto.graph
        graph.initializer.append(
            numpy_helper.from_array(np.array(net.labels, object), "class_names")
        )
        graph.node.append(
            helper.make_node("ArgMax", [net.output], ["class_index"], axis=-1, keepdims=0)
        )
        graph.node.append(helper.make_node("Gather", ["class_names", "class_index"], ["label"]))
        label = helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"])
        graph.output.insert(0, label)
    return proto


def _original_model(net: "_Classifier | _Encoder", longest: int | None) -> converted.OriginalModel:
    """Return a function for the original's predictions. It raises InvalidConfig for a
    missing text, and ValueError for more than `longest` tokens: RoBERTa accepts more
    if some are `<pad>`, because those have no position.
    """

    def original(batch: ModelInput) -> dict[str, Array]:
        texts = pd.DataFrame(batch).iloc[:, 0].tolist()
        if not all(isinstance(text, str) for text in texts):
            raise InvalidConfig("a text is missing")
        # The rows of the example are repeated, so each text is predicted once.
        unique_texts = list(dict.fromkeys(texts))
        tokens = net.tokenizer([net.prefix + text for text in unique_texts], verbose=False)
        for text, ids in zip(unique_texts, tokens["input_ids"], strict=True):
            if not ids:
                raise ValueError(
                    f"the text {short_repr(text)} has no tokens, because the tokenizer adds no "
                    "special tokens; leave it out"
                )
            if longest and len(ids) > longest:
                raise ValueError(
                    f"the text {short_repr(text)} has {len(ids)} tokens, more than {longest}"
                )
        answers = net.predict(unique_texts)
        row_of_text = {text: row for row, text in enumerate(unique_texts)}
        rows = [row_of_text[text] for text in texts]
        return {name: array[rows] for name, array in answers.items()}

    return original


def _saved_tokenizer(
    model: "_Classifier | _Encoder", texts: list[str]
) -> tuple[TokenizerSpec, str]:
    """Return the description of the tokenizer and the content of its file.

    Raises ConversionError if the saved tokenizer does not return the same arrays as the
    original for hostile texts.
    """
    if model.tokenizer.pad_token is None:
        raise ConversionError(
            "it has no padding token: set tokenizer.pad_token and model.config.pad_token_id"
        )
    # This call sets truncation and padding in the tokenizer.
    returned = list(model.tokenize(texts))
    for name in returned:
        if name not in (*_ARRAYS, "modality", "prompt_length"):
            raise ConversionError(
                f"its tokenizer returns {name!r}, which is not supported: {', '.join(_ARRAYS)} are"
            )
    names = [name for name in _ARRAYS if name in returned]
    content = model.tokenizer.backend_tokenizer.to_str()
    spec = TokenizerSpec(
        file=Path(_FILE), graph_inputs=names, max_length=_max_tokens(model), prefix=model.prefix
    )
    with temporary_folder("onnxserve-tokenizer-") as folder:
        (folder / _FILE).write_text(content, encoding="utf-8")
        saved = TextTokenizer(replace(spec, file=folder / _FILE))
    random = np.random.default_rng(0)
    words = np.array([*_HOSTILE, *texts], dtype=object)
    for _ in range(_HOSTILE_TEXTS):
        positions = random.integers(0, len(words), random.integers(1, 5))
        _compare_tokens(model, saved, "".join(words[positions]), texts[0], names)
    return spec, content


def _max_tokens(model: "_Classifier | _Encoder") -> int:
    """Return the maximum number of tokens. Raises ConversionError if neither the
    tokenizer nor the net limits it.
    """
    truncation = model.tokenizer.backend_tokenizer.truncation or {}
    # A net that does not declare its number of positions has 0 here.
    config = getattr(model.net, "config", None) or getattr(model.net[0], "config", None)
    positions: int = getattr(config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        is_embedding = name.endswith("position_embeddings")
        if is_embedding and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1  # RoBERTa and MPNet do not use the first positions.
    limits = (truncation.get("max_length"), positions, model.tokenizer.model_max_length)
    for limit in limits:
        # A `model_max_length` of 1e30 is not a limit.
        if limit and 0 < limit < _UNLIMITED_TOKENS:
            return int(limit)
    raise ConversionError(
        "its tokenizer does not limit the length of texts: set tokenizer.model_max_length = 512"
    )


def _compare_tokens(
    model: "_Classifier | _Encoder", saved: TextTokenizer, text: str, other: str, names: list[str]
) -> None:
    """Raise ConversionError if the saved tokenizer returns other arrays for the two
    texts than the original.
    """
    try:
        feeds = saved.feeds([text, other])
    except SchemaMismatch:  # The text has too many tokens for a model that does not truncate.
        return
    tokens = model.tokenize([text, other])
    differing = [
        name for name in names if not np.array_equal(feeds[name], np.asarray(tokens[name]))
    ]
    if differing:
        shown_options = f" ({_described(model.options)})" if model.options else ""
        raise ConversionError(
            f"{_FILE} yields other {differing[0]} for {short_repr(text)}: the model calls its "
            f"tokenizer with an option that this file does not contain{shown_options}"
        )
