"""Convert text models of transformers and sentence-transformers: the tokenizer as a file, and the net as a graph.

The graph includes pooling, normalization and the function that turns logits into scores. The tokenizer is the file of
a fast tokenizer, which `runtime/tokenizer.py` runs without torch. Its arrays are compared with the original's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.flavor.batch import ModelData, ModelInput
from mlflow_deploy_plugin.flavor.convert import converted
from mlflow_deploy_plugin.flavor.convert import torch as torch_converter
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, DynamicAxes, Forms, TrainedModel
from mlflow_deploy_plugin.runtime import Input
from mlflow_deploy_plugin.runtime.artifact import Role, TokenizerSpec
from mlflow_deploy_plugin.runtime.feeds import Array, object_array
from mlflow_deploy_plugin.runtime.tokenizer import TextTokenizer
from mlflow_deploy_plugin.runtime.values import short_repr
from mlflow_deploy_plugin.statedir.files import temporary_folder

_FILE = "tokenizer.json"
_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")
_HOSTILE = (
    "|  |\t|\r\n|\x00|a\x00b|\x07\x1b[0m|\u200b|\ufeff|\ufffd|\ue000|\U0010ffff|\u3000|\u00a0|\u2028|é|e\u0301|\u0301"
    "|İ|ß|ﬁ|Ⅷ|½|\u212a|ǅ|ϴ|\u1e9e|\ufdfa|👩\u200d👩\u200d👧|🇩🇪🇩|👍🏽|☃️|日本語|中文字符|한국어|각|ไทย|हिन्दी|עברית|\u202eabc\u202c"
    "|don't|U.S.A.|a_b-c/d|1,234.50€|http://x.y/?q=1#z|…|``''|[CLS]|[SEP]|[PAD]|[MASK]|[UNK]|<s>|</s>|<pad>|<unk>"
    "|<mask>|▁|##ing|" + "A" * 101 + "|" + "!? " * 50
).split("|")
"""Texts that tokenizers treat in different ways."""


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table with a single column of texts. Raises InvalidConfig for other data."""
    table: pd.DataFrame = data
    if not isinstance(data, pd.DataFrame):
        texts = [data] if isinstance(data, str) else list(data)
        table = pd.DataFrame({getattr(data, "name", None) or "text": pd.Series(texts, dtype=object)})
    if table.shape[1] != 1 or not all(isinstance(text, str) for text in table.iloc[:, 0]):
        raise InvalidConfig(f"input_example: {type(model).__name__} needs a list of texts, or a table with one column")
    return table


def forms(model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes) -> Forms:
    """Return one form, the exported net. Raises InvalidConfig or ConversionError if the model is not supported."""
    net: _Classifier | _Encoder
    if isinstance(model, transformers.TextClassificationPipeline):
        net = _Classifier(model)
    elif isinstance(model, SentenceTransformer):
        net = _Encoder(model)
    else:
        raise ConversionError(
            f"a {getattr(model, 'task', type(model).__name__)} model cannot be converted to ONNX: supported are "
            "text-classification pipelines and SentenceTransformer; for embeddings, "
            "SentenceTransformer(modules=[Transformer(path), Pooling(size)]) defines the pooling"
        )
    method = "predict" if net.output == "probabilities" else predict_fn
    table = converted.require_example(batch, method, type(model).__name__, "predict")
    return [partial(_convert, model, net, table, predict_fn)]


class _Classifier(torch.nn.Module):  # type: ignore[misc]
    """A text-classification pipeline and its net with scores. `names` are the inputs of `forward`, in order."""

    prefix = ""
    names: Sequence[str] = ()

    def __init__(self, pipeline: TrainedModel) -> None:
        super().__init__()
        config = pipeline.model.config
        self.stands_for = type(pipeline).__name__
        self.original, self.net, self.tokenizer = pipeline, pipeline.model, pipeline.tokenizer
        self.all_labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        is_single = len(self.all_labels) == 1
        function = getattr(pipeline._postprocess_params.get("function_to_apply"), "value", "")
        if not function:  # The rules of TextClassificationPipeline.postprocess.
            is_multiple = config.problem_type == "multi_label_classification" or is_single
            function = "none" if config.problem_type == "regression" else "sigmoid" if is_multiple else "softmax"
        activate = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid, "none": torch.nn.Identity()}
        self._activate = activate[function]
        self.output = "score" if is_single else "probabilities" if function == "softmax" else "scores"
        self.labels = () if is_single else self.all_labels

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self._activate(self.net(**dict(zip(self.names, tensors, strict=True))).logits.float())
        return {self.output: scores if self.labels else scores[:, 0]}

    def predict(self, texts: list[str]) -> dict[str, Array]:
        answers = self.original(texts, top_k=None)
        by_label = [{part["label"]: part["score"] for part in parts} for parts in answers]
        scores = np.array([[scores[label] for label in self.all_labels] for scores in by_label], np.float32)
        if not self.labels:
            return {self.output: scores[:, 0]}
        return {"label": object_array([parts[0]["label"] for parts in answers]), self.output: scores}

    def tokenize(self, texts: list[str]) -> Mapping[str, Any]:
        options = {"padding": True, **self.original._preprocess_params, "return_tensors": "np"}
        return dict(self.tokenizer(texts, **options))


class _Encoder(torch.nn.Module):  # type: ignore[misc]
    """A SentenceTransformer, like `_Classifier`."""

    names: Sequence[str] = ()
    labels: tuple[str, ...] = ()
    output = "embedding"

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.stands_for = type(model).__name__
        self.net, self.tokenizer = model, model.tokenizer
        self.prefix: str = model.prompts.get(model.default_prompt_name) or ""
        if self.prefix and any(not getattr(module, "include_prompt", True) for module in model):
            raise ConversionError("its pooling leaves out the prompt (include_prompt=False), which a graph cannot do")

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        embedding = self.net(dict(zip(self.names, tensors, strict=True)))["sentence_embedding"]
        return {self.output: embedding[:, : self.net.truncate_dim].float()}

    def predict(self, texts: list[str]) -> dict[str, Array]:
        return {self.output: self.net.encode(texts, show_progress_bar=False)}

    def tokenize(self, texts: list[str]) -> Mapping[str, Any]:
        return dict(self.net.preprocess(texts, prompt=self.prefix or None))


def _convert(model: TrainedModel, net: "_Classifier | _Encoder", batch: Any, predict_fn: str) -> ConvertedModel:
    column, texts = str(batch.columns[0]), batch.iloc[:, 0].tolist()
    spec, content = _saved_tokenizer(net.eval(), texts)
    net.names = names = list(spec.graph_inputs)
    arrays = {name: np.asarray(array) for name, array in net.tokenize(texts).items() if name in names}
    proto = torch_converter.export(net, arrays, names, dict.fromkeys(names, (1,)), torch_converter.original_model(net))
    if net.labels:  # Add the output `label` [N], the class with the highest score.
        graph, string = proto.graph, TensorProto.STRING
        graph.initializer.append(numpy_helper.from_array(np.array(net.labels, object), "class_names"))
        graph.node.append(helper.make_node("ArgMax", [net.output], ["class_index"], axis=-1, keepdims=0))
        graph.node.append(helper.make_node("Gather", ["class_names", "class_index"], ["label"]))
        graph.output.insert(0, helper.make_tensor_value_info("label", string, ["batch"]))

    def original(batch: ModelInput) -> dict[str, Array]:
        given = pd.DataFrame(batch).iloc[:, 0].tolist()
        if not all(isinstance(text, str) for text in given):
            raise InvalidConfig("a text is missing")
        places = {text: index for index, text in enumerate(dict.fromkeys(given))}  # The example is repeated.
        return {name: array[[places[text] for text in given]] for name, array in net.predict(list(places)).items()}

    package = type(model).__module__.partition(".")[0]
    bound = converted.bind_graph(proto, None, package, version(package.replace("_", "-")), original)
    roles: dict[str, Role] = {"label": "label", "probabilities": "probabilities"}
    return replace(
        bound,
        inputs=(Input(column, "str", (-1,), (column,)),),
        outputs=tuple(replace(entry, role=roles.get(entry.name, "values")) for entry in bound.outputs),
        prediction=(net.output if predict_fn == "predict_proba" else bound.outputs[0].name,),
        classes=net.labels,
        boundary_values=converted.BoundaryValues(texts={column: tuple(_HOSTILE)}),
        move_weights=partial(torch_converter.move_weights, net),
        tokenizer=spec,
        files={_FILE: content},
    )


def _saved_tokenizer(model: "_Classifier | _Encoder", texts: list[str]) -> tuple[TokenizerSpec, str]:
    """Return the description of the tokenizer and the content of its file.

    Raises ConversionError if the saved tokenizer does not return the same arrays as the original for hostile texts.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ConversionError(
            f"its {type(tokenizer).__name__} is not a fast tokenizer of transformers: load it with use_fast=True"
        )
    if tokenizer.pad_token is None:
        raise ConversionError("it has no padding token: set tokenizer.pad_token and model.config.pad_token_id")
    arrays = model.tokenize(texts)  # This call sets truncation and padding in the tokenizer.
    names = [name for name in _ARRAYS if name in arrays]
    if others := [name for name in arrays if name not in (*_ARRAYS, "modality", "prompt_length")]:
        raise ConversionError(f"its tokenizer returns {others[0]!r}, which is not supported: {', '.join(_ARRAYS)} are")
    content, truncation = tokenizer.backend_tokenizer.to_str(), tokenizer.backend_tokenizer.truncation or {}
    config = getattr(model.net, "config", None) or getattr(model.net[0], "config", None)
    positions = getattr(config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1  # RoBERTa and MPNet do not use the first positions.
    limits = (truncation.get("max_length"), positions, tokenizer.model_max_length)
    most = next((limit for limit in limits if limit and 0 < limit < 10**6), 0)
    if not most:  # The `model_max_length` of such a tokenizer is 1e30.
        raise ConversionError("its tokenizer does not limit the length of texts: set tokenizer.model_max_length = 512")
    spec = TokenizerSpec(Path(_FILE), names, most, model.prefix)
    with temporary_folder("onnxserve-tokenizer-") as folder:
        (folder / _FILE).write_text(content, encoding="utf-8")
        saved = TextTokenizer(replace(spec, file=folder / _FILE))
    random, words = np.random.default_rng(0), [*_HOSTILE, *texts]
    for _ in range(2_000):
        text = "".join(words[index] for index in random.integers(0, len(words), random.integers(1, 5)))
        try:
            got = saved.feeds([text, texts[0]])
        except SchemaMismatch:  # The text has too many tokens for a model that does not truncate.
            continue
        want = model.tokenize([text, texts[0]])
        for name in names:
            if not np.array_equal(got[name], np.asarray(want[name])):
                raise ConversionError(
                    f"{_FILE} yields other {name} for {short_repr(text)}: the model calls its tokenizer with an option "
                    "that this file does not contain"
                )
    return spec, content
