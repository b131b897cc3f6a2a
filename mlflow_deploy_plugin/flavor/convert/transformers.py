"""Convert text models of transformers and sentence-transformers: the tokenizer as a file, and the net as a graph.

The graph includes pooling, normalization and the function that turns logits into scores. The tokenizer is the file of
a fast tokenizer, which `runtime/tokenizer.py` runs without torch. Its arrays are compared with the original's.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pandas as pd
import sentence_transformers
import torch
import transformers
from onnx import ModelProto, TensorProto, helper, numpy_helper
from transformers import Pipeline, TextClassificationPipeline

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.flavor.batch import ModelData, ModelInput
from mlflow_deploy_plugin.flavor.convert import torch as torch_converter
from mlflow_deploy_plugin.flavor.convert.converted import (
    BoundaryValues,
    ConvertedModel,
    DynamicAxes,
    Forms,
    TrainedModel,
    bind_graph,
    require_example,
)
from mlflow_deploy_plugin.runtime import Input
from mlflow_deploy_plugin.runtime.artifact import Role, TokenizerSpec
from mlflow_deploy_plugin.runtime.feeds import Array, object_array
from mlflow_deploy_plugin.runtime.tokenizer import TextTokenizer
from mlflow_deploy_plugin.runtime.values import short_repr
from mlflow_deploy_plugin.statedir.files import temporary_folder

_FILE = "tokenizer.json"
_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")
_NOT_FEATURES = ("modality", "prompt_length")
_UNLIMITED = 10**6
"""A tokenizer without a limit has a `model_max_length` of 1e30."""
_HOSTILE = (
    *("", " ", "\t\r\n", "\x00", "a\x00b", "\x07\x1b[0m", "\u200b", "\ufeff", "\ufffd", "\ue000", "\U0010ffff"),
    *("é", "e\u0301", "\u0301", "a" + "\u0300" * 40, "İ", "ß", "ﬁ", "Ⅷ", "½", "\u212a", "ǅ", "ϴ", "\u1e9e"),
    *("👩‍👩‍👧‍👦", "🇩🇪🇩", "👍🏽", "☃️", "日本語のテキスト", "中文字符", "한국어", "각", "ไทย", "हिन्दी", "עברית", "مرحبا"),
    *("\u202eabc\u202c", "\u2066x\u2069", "don't", "U.S.A.", "a_b-c/d", "1,234.50€", "http://x.y/?q=1#z", "…", "``''"),
    *(
        "[CLS]",
        "[SEP] [PAD]",
        "[MASK]",
        "[UNK]",
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
        "<mask>",
        "<|endoftext|>",
        "▁",
        "##ing",
    ),
    *("x" * 300, "word " * 40, "A" * 101, "!?" * 50, "\u3000", "\u00a0", "\u2028"),
)
_CHECKED_TEXTS = 2_000

Row: TypeAlias = tuple[str, ...]
"""A text, or a pair of texts."""


class _Net(torch.nn.Module):  # type: ignore[misc]
    """The net as a function of the arrays of the tokenizer, in the order of `names`."""

    def __init__(self, module: TrainedModel, names: Sequence[str], output: str, head: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self._names, self._output, self._head = module, tuple(names), output, head

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self._output: self._head(self.module, dict(zip(self._names, tensors, strict=True))).float()}


@dataclass(frozen=True)
class _TextModel:
    """A text model in the terms of this module.

    Attributes:
        module: the torch module, which `head` calls with the arrays of the tokenizer.
        tokenize: the original's function from rows to arrays, padded to the longest row.
        predict: the original's predictions for rows, by output name.
        output, role: the output of the net. `labels` names the columns of a classifier.
    """

    module: TrainedModel
    tokenizer: TrainedModel
    head: Callable[..., Any]
    tokenize: Callable[[list[Row]], Mapping[str, Any]]
    predict: Callable[[list[Row]], dict[str, Array]]
    output: str
    role: Role = "values"
    labels: tuple[str, ...] = ()
    prefix: str = ""


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table with a column of texts, or two columns for pairs. Raises InvalidConfig for other data."""
    table: pd.DataFrame = data
    if isinstance(data, pd.Series | pd.Index):
        table = pd.DataFrame({data.name or "text": list(data)})
    elif not isinstance(data, pd.DataFrame):
        rows = [data] if isinstance(data, str) else list(data)
        names = ["text"] if rows and isinstance(rows[0], str) else ["text", "text_pair"]
        try:
            table = pd.DataFrame(rows, columns=names, dtype=object)
        except (TypeError, ValueError):
            table = pd.DataFrame()
    if not 1 <= table.shape[1] <= 2 or not all(isinstance(text, str) for text in table.to_numpy(object).flat):
        raise InvalidConfig(
            f"input_example: {type(model).__name__} needs texts: a list of texts, a list of pairs of texts, or a table "
            "with one or two columns of texts"
        )
    return table


def known_values(model: TrainedModel, names: list[str]) -> BoundaryValues:
    """Return texts that tokenizers treat in different ways, for each column."""
    return BoundaryValues(texts=dict.fromkeys(names, _HOSTILE))


def forms(model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes) -> Forms:
    """Return one form, the exported net. Raises InvalidConfig or ConversionError if the model is not supported."""
    text_model = _text_model(model)
    is_classifier = text_model.role == "probabilities"
    batch = require_example(batch, "predict" if is_classifier else predict_fn, type(model).__name__, "predict")
    table = pd.DataFrame(batch)
    is_pair = isinstance(model, sentence_transformers.CrossEncoder)
    if table.shape[1] != 1 + is_pair:  # A pipeline ignores an empty second text, but a CrossEncoder does not.
        raise InvalidConfig(
            f"input_example: {type(model).__name__} needs {1 + is_pair} column(s) of texts, not {table.shape[1]}; "
            "only a CrossEncoder of sentence-transformers reads pairs"
        )
    return [partial(_convert, model, text_model, table, predict_fn)]


def _text_model(model: TrainedModel) -> _TextModel:
    if isinstance(model, TextClassificationPipeline):
        return _classifier(model)
    if isinstance(model, sentence_transformers.SentenceTransformer):
        return _embedding(model)
    if isinstance(model, sentence_transformers.CrossEncoder):
        return _cross_encoder(model)
    kind = f"a pipeline for {model.task}" if isinstance(model, Pipeline) else f"a {type(model).__name__}"
    raise ConversionError(
        f"{kind} cannot be converted to ONNX: supported are pipelines for text-classification, and SentenceTransformer "
        "and CrossEncoder of sentence-transformers; for embeddings, SentenceTransformer(modules=[Transformer(path), "
        "Pooling(size)]) defines the pooling"
    )


def _classifier(pipeline: TrainedModel) -> _TextModel:
    config, options = pipeline.model.config, pipeline._preprocess_params
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    if len(set(labels)) < len(labels):
        raise ConversionError("two classes have the same name: set other names in model.config.id2label")
    applied = pipeline._postprocess_params.get("function_to_apply")
    function = getattr(applied, "value", applied)
    if function is None:  # The rules of TextClassificationPipeline.postprocess.
        is_multi_label = config.problem_type == "multi_label_classification" or len(labels) == 1
        function = "none" if config.problem_type == "regression" else "sigmoid" if is_multi_label else "softmax"
    activate = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": torch.nn.Identity()}
    is_single = len(labels) == 1

    def head(module: TrainedModel, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scores: torch.Tensor = activate[function](module(**arrays).logits.float())
        return scores[:, 0] if is_single else scores

    def predict(rows: list[Row]) -> dict[str, Array]:
        answers = pipeline([text for (text,) in rows], top_k=None)
        by_label = [{part["label"]: part["score"] for part in parts} for parts in answers]
        scores = np.array([[scores[label] for label in labels] for scores in by_label])
        if is_single:
            return {"score": scores[:, 0].astype(np.float32)}
        top = object_array([row[0]["label"] for row in answers])
        return {"label": top, output: scores.astype(np.float32)}

    output = "score" if is_single else "probabilities" if function == "softmax" else "scores"
    role: Role = "values" if is_single else "probabilities" if function == "softmax" else "scores"

    def tokenize(rows: list[Row]) -> Mapping[str, Any]:
        arrays: Mapping[str, Any] = pipeline.tokenizer(
            [text for (text,) in rows], **{"padding": True, **options, "return_tensors": "np"}
        )
        return arrays

    names = () if is_single else labels
    return _TextModel(pipeline.model, pipeline.tokenizer, head, tokenize, predict, output, role, names)


def _embedding(model: TrainedModel) -> _TextModel:
    prefix = model.prompts.get(model.default_prompt_name) or ""
    if prefix and any(not getattr(module, "include_prompt", True) for module in model):
        raise ConversionError(
            "its pooling leaves out the prompt (include_prompt=False), which a graph does not support"
        )

    def head(module: TrainedModel, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        embedding: torch.Tensor = module(dict(arrays))["sentence_embedding"]
        return embedding[:, : model.truncate_dim]

    def predict(rows: list[Row]) -> dict[str, Array]:
        return {"embedding": model.encode([text for (text,) in rows], show_progress_bar=False)}

    def tokenize(rows: list[Row]) -> Mapping[str, Any]:
        arrays: Mapping[str, Any] = model.preprocess([text for (text,) in rows], prompt=prefix or None)
        return arrays

    return _TextModel(model, model.tokenizer, head, tokenize, predict, "embedding", prefix=prefix)


def _cross_encoder(model: TrainedModel) -> _TextModel:
    output = "score" if model.num_labels == 1 else "scores"

    def head(module: TrainedModel, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scores: torch.Tensor = model.activation_fn(module(dict(arrays))["scores"])
        return scores[:, 0] if model.num_labels == 1 and scores.ndim == 2 else scores

    def predict(rows: list[Row]) -> dict[str, Array]:
        return {output: model.predict(list(map(list, rows)), show_progress_bar=False)}

    def tokenize(rows: list[Row]) -> Mapping[str, Any]:
        arrays: Mapping[str, Any] = model.preprocess(list(map(list, rows)))
        return arrays

    return _TextModel(model, model.tokenizer, head, tokenize, predict, output)


def _convert(model: TrainedModel, text_model: _TextModel, table: pd.DataFrame, predict_fn: str) -> ConvertedModel:
    tokenizer = text_model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConversionError(
            f"its tokenizer {type(tokenizer).__name__} is not a fast tokenizer, so it has no {_FILE}: load the model "
            "with AutoTokenizer.from_pretrained(path, use_fast=True)"
        )
    if tokenizer.pad_token is None:
        raise ConversionError(
            "its tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token, and "
            "model.config.pad_token_id = tokenizer.pad_token_id"
        )
    rows = list(table.itertuples(index=False, name=None))
    names, spec, content = _saved_tokenizer(text_model, rows)
    net = _Net(text_model.module, names, text_model.output, text_model.head).eval()
    arrays = {name: np.asarray(text_model.tokenize(rows)[name]) for name in names}
    kind = text_model.output
    proto = torch_converter.export(net, arrays, names, dict.fromkeys(names, (1,)), torch_converter.original_model(net))
    if text_model.labels:
        _add_labels(proto, kind, text_model.labels)

    def original(batch: ModelInput) -> dict[str, Array]:
        given = list(pd.DataFrame(batch).itertuples(index=False, name=None))
        if not all(isinstance(text, str) for row in given for text in row):
            raise InvalidConfig("a text is missing")
        known = list(dict.fromkeys(given))  # The parity check repeats the rows of the example.
        with torch.inference_mode():
            answers = text_model.predict(known)
        places = {row: index for index, row in enumerate(known)}
        return {name: array[[places[row] for row in given]] for name, array in answers.items()}

    package = transformers if isinstance(model, Pipeline) else sentence_transformers
    bound = bind_graph(proto, None, package.__name__, package.__version__, original)
    columns = [str(name) for name in table.columns]
    outputs = tuple(
        replace(output, role="label" if output.name == "label" else text_model.role) for output in bound.outputs
    )
    prediction = kind if predict_fn == "predict_proba" else outputs[0].name
    return replace(
        bound,
        inputs=tuple(Input(name, "str", (-1,), (name,)) for name in columns),
        outputs=outputs,
        prediction=(prediction,),
        classes=text_model.labels,
        boundary_values=known_values(model, columns),
        move_weights=partial(torch_converter.move_weights, text_model.module),
        tokenizer=spec,
        files={_FILE: content},
    )


def _saved_tokenizer(text_model: _TextModel, rows: list[Row]) -> tuple[list[str], TokenizerSpec, str]:
    """Return the inputs of the graph, the description of the tokenizer, and the content of its file.

    Raises ConversionError if the saved tokenizer does not return the same arrays as the original.
    """
    tokenizer = text_model.tokenizer
    arrays = text_model.tokenize(rows)  # This call sets truncation and padding in the tokenizer.
    names = [name for name in _ARRAYS if name in arrays]
    if others := [name for name in arrays if name not in (*_ARRAYS, *_NOT_FEATURES)]:
        raise ConversionError(f"its tokenizer returns {others[0]!r}, which is not supported: {', '.join(_ARRAYS)} are")
    content = tokenizer.backend_tokenizer.to_str()
    truncation = tokenizer.backend_tokenizer.truncation or {}
    config = getattr(text_model.module, "config", None) or getattr(text_model.module[0], "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    limits = (truncation.get("max_length"), positions, tokenizer.model_max_length)
    known = [limit for limit in limits if limit and 0 < limit < _UNLIMITED]
    if not known:
        raise ConversionError("its tokenizer does not limit the length of texts: set tokenizer.model_max_length = 512")
    spec = TokenizerSpec(Path(_FILE), tuple(names), known[0], text_model.prefix)
    with temporary_folder("onnxserve-tokenizer-") as folder:
        (folder / _FILE).write_text(content, encoding="utf-8")
        saved = TextTokenizer(replace(spec, file=folder / _FILE))
    width = len(rows[0])
    random = np.random.default_rng(0)
    words = [*_HOSTILE, *(text for row in rows for text in row)]
    hostile = ["".join(random.choice(words, random.integers(1, 5)).tolist()) for _ in range(_CHECKED_TEXTS)]
    for start in range(0, len(hostile), 50):
        texts = hostile[start : start + 50]
        checked: list[Row] = [(text,) if width == 1 else (text, texts[-1]) for text in texts]
        _compare_tokens(text_model, saved, checked, names)
    return names, spec, content


def _compare_tokens(text_model: _TextModel, saved: TextTokenizer, rows: list[Row], names: Sequence[str]) -> None:
    try:
        got = saved.feeds(*zip(*rows, strict=True))
    except SchemaMismatch:  # A text has no tokens, or too many tokens for a model that does not truncate.
        if len(rows) > 1:
            for row in rows:
                _compare_tokens(text_model, saved, [row], names)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = text_model.tokenize(rows)
    for name in names:
        expected = np.asarray(want[name])
        if expected.shape != got[name].shape or not (expected == got[name]).all():
            raise ConversionError(
                f"the tokenizers library returns other {name} than the model's tokenizer, for example for texts near "
                f"{short_repr(rows[0][0])}: the model uses options of its tokenizer that {_FILE} does not contain"
            )


def _add_labels(proto: ModelProto, scores: str, labels: Sequence[str]) -> None:
    """Add the output `label` [N], the name of the class with the highest score, as the first output."""
    graph = proto.graph
    graph.initializer.append(numpy_helper.from_array(np.array(labels, object), "class_names"))
    graph.node.append(helper.make_node("ArgMax", [scores], ["class_index"], "class_index", axis=-1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["class_names", "class_index"], ["label"], "label"))
    graph.output.insert(0, onnx.helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]))
