"""torch modules and programs of `torch.export`, converted by the dynamo exporter; TorchScript, by the legacy one.

Only the legacy exporter keeps the control flow of a ScriptModule and its free sizes (torch 2.13).
"""

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import GraphProto, ModelProto, TensorProto
from onnx_ir.passes.common import NameFixPass
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.core import aten_gather
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlflow_deploy_plugin.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.flavor.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.flavor.comparison import ROUNDINGS
from mlflow_deploy_plugin.flavor.convert.conversion_errors import plain_reason
from mlflow_deploy_plugin.flavor.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    OriginalModel,
    TrainedModel,
    bind_graph,
    call_original,
    require_example,
)
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.refusals import REFUSED_ROWS

_EXAMPLE_ROWS = 3
"""The least rows of the traced example: one row would fix the batch of an LSTM or Transformer at 1."""

_FIXED_SIZE = re.compile(r"inferred a static shape of (?P<size>\d+) for dimension (?P<place>\S+?)\.?(?:\s|$)")
_NO_BFLOAT16 = "which neither numpy nor a request has; model.float() makes it a module of float32"


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table of numbers, or tensors by name from an array, a tuple in the order of `forward`, or a mapping."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, dict):
        return {str(name): _array(values) for name, values in data.items()}
    if isinstance(data, tuple):
        return {name: _array(values) for name, values in zip(_parameters(model), data, strict=False)}
    return {"": _array(data)}


def forms(model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes) -> Forms:
    """Return one form, the exported module. Raises as `require_example`."""
    batch = require_example(batch, predict_fn, "a torch module", "forward")
    if not isinstance(batch, pd.DataFrame) and any(array.dtype.kind in "OUT" for array in batch.values()):
        raise ConversionError(
            f"{type(model).__name__} reads texts, by Python; ONNX has the tensors behind its tokenizer"
        )
    return [partial(_export, model, batch, dynamic_axes)]


def _export(model: TrainedModel, batch: ModelInput, dynamic_axes: DynamicAxes) -> ConvertedModel:
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which compiles for each size of batches, for seconds
    parameters = _parameters(model)
    if isinstance(batch, pd.DataFrame) or set(batch) == {""}:
        names = [next(iter(parameters), "input")]
    else:
        names = [name for name in parameters if name in batch]
        if unknown := [name for name in batch if name not in names]:
            raise InvalidConfig(
                f"input_example: {type(model).__name__}.forward has no parameter {unknown[0]!r}; "
                f"it has {', '.join(parameters)}; a graph takes an array for each, and no mapping or list of them"
            )
    original = original_model(model, of_tensors=True)
    with _eval_mode(model):
        proto = _mark_unknown_ids(export(model, batch, names, dynamic_axes, original))
    bound = bind_graph(proto, batch, "torch", str(torch.__version__), original)
    return replace(bound, move_weights=partial(move_weights, model))


@contextmanager
def move_weights(module: TrainedModel, random: np.random.Generator) -> Iterator[None]:
    weights = [one.data for one in (*module.parameters(), *module.buffers()) if one.is_floating_point()]
    kept = [one.clone() for one in weights]
    try:
        for one in weights:
            signs = torch.from_numpy(random.choice([-1.0, 1.0], tuple(one.shape))).to(one)
            one.mul_(1 + ROUNDINGS * torch.finfo(one.dtype).eps * signs)
        yield
    finally:
        for one, values in zip(weights, kept, strict=True):
            one.copy_(values)


def export(
    model: TrainedModel,
    batch: ModelInput,
    names: list[str],
    dynamic_axes: DynamicAxes,
    original: OriginalModel,
    legacy: bool = False,
) -> ModelProto:
    """Return the ModelProto of a module (or a program) in `eval` mode, by rows of the batch.

    `names` are the inputs in the order of `forward`; `legacy` traces modules by TorchScript. Raises ConversionError if
    the exporter refuses the module, and InvalidConfig if the model refuses the batch.
    """
    axes = {names[0]: dynamic_axes.get("", ()), **dynamic_axes}
    # one program may take batches of one size only: then they are as long as the example
    some = batch if isinstance(model, ExportedProgram) else _traced_rows(batch)
    answers = call_original(original, some)
    if both := [name for name in answers if name in names]:
        raise ConversionError(
            f"{type(model).__name__} answers {both[0]!r}, which is the name of an input, too: a graph has a name once; "
            "give the answer another key"
        )
    proto = _to_onnx(model, _tensors(some, names, model), names, list(answers), axes, legacy)
    if any(dynamic_axes.values()) and isinstance(some, dict):
        longer = dict(some)
        for name, free in dynamic_axes.items():
            for axis in free:
                longer[name] = longer[name].take(np.arange(longer[name].shape[axis] + 1), axis, mode="wrap")
        with suppress(InvalidConfig):  # not every size fits every model
            others = call_original(original, longer)
            for value in proto.graph.output:  # of a GRU, the exporter gives outputs the example's size (torch 2.13)
                dimensions = value.type.tensor_type.shape.dim
                sizes = zip(answers[value.name].shape, others[value.name].shape, strict=False)
                for axis in (axis for axis, (size, other) in enumerate(sizes) if size != other):
                    if dimensions[axis].dim_value:
                        dimensions[axis].dim_param = f"{value.name}_{axis}"
    return proto


def _mark_unknown_ids(proto: ModelProto) -> ModelProto:
    """Mark ids that an embedding does not have by `REFUSED_ROWS`: torch refuses them, and ONNX's Gather does not."""
    graph = proto.graph
    values = {one.name: one.type.tensor_type for one in (*graph.input, *graph.value_info)}
    batch = graph.input[0].type.tensor_type.shape.dim[:1]
    sizes = {one.name: one.dims[0] for one in graph.initializer if one.dims}
    nodes = list(graph.node)
    makers = {output: node for node in nodes for output in node.output}
    marks: list[str] = []
    reasons: list[str] = []
    del graph.node[:]
    for node in nodes:
        table, ids = (*node.input, "", "")[:2]
        # the legacy exporter's Gather has no axis if it is an embedding's
        sources = " ".join(entry.value for entry in node.metadata_props)
        embeds = "aten.embedding" in sources or "aten.one_hot" in sources or not node.attribute
        if node.op_type == "Gather" and embeds and table in sizes:
            flat, shape = ids, ""
            while (maker := makers.get(ids)) and maker.op_type == "Reshape" and sizes.get(maker.input[1]) == 1:
                ids, shape = maker.input  # a bag of embeddings reads all rows as one
            if ids in values and values[ids].shape.dim[:1] == batch:
                last = sizes[table] - 1
                marks.append(_mark_ids(graph, ids, values[ids].elem_type, last, f"{REFUSED_ROWS}_{len(marks)}"))
                node.input[1] = f"{marks[-1]}_ids"
                if ids != flat:
                    node.input[1] = f"{marks[-1]}_all"
                    graph.node.append(onnx.helper.make_node("Reshape", [f"{marks[-1]}_ids", shape], [node.input[1]]))
                is_sent = any(one.name == ids for one in graph.input)
                reasons.append(f"{repr(ids) if is_sent else 'an embedding'} takes the ids 0 to {last}")
        graph.node.append(node)
    if marks:
        graph.node.append(onnx.helper.make_node("Sum", marks, [REFUSED_ROWS], REFUSED_ROWS))
        graph.output.append(onnx.helper.make_tensor_value_info(REFUSED_ROWS, TensorProto.FLOAT, ["batch"]))
        onnx.helper.set_model_props(proto, {REFUSED_ROWS: ", and ".join(dict.fromkeys(reasons))})
    return proto


def _mark_ids(graph: GraphProto, ids: str, kind: int, last: int, mark: str) -> str:
    """Add the nodes of a mark, [N], that is 0 if all ids of a row are from 0 to `last`; `{mark}_ids` are all so."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    constants = {f"{mark}_least": np.array(0, dtype), f"{mark}_most": np.array(last, dtype), f"{mark}_axis": [1]}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items())
    for operator, inputs, output, options in (
        ("Clip", (ids, f"{mark}_least", f"{mark}_most"), f"{mark}_ids", {}),
        ("Sub", (ids, f"{mark}_ids"), f"{mark}_excess", {}),
        ("Flatten", (f"{mark}_excess",), f"{mark}_flat", {}),
        ("Cast", (f"{mark}_flat",), f"{mark}_number", {"to": TensorProto.FLOAT}),
        ("ReduceL1", (f"{mark}_number", f"{mark}_axis"), mark, {"keepdims": 0}),
    ):
        graph.node.append(onnx.helper.make_node(operator, inputs, [output], output, **options))
    return mark


def _traced_rows(batch: ModelInput) -> ModelInput:
    """Return the rows that the exporter sees: at least three, and as many as no other dimension has."""
    example = Batch(batch)
    sizes = {size for tensor in example.tensors.values() for size in tensor.shape[1:]}
    rows = next(number for number in count(_EXAMPLE_ROWS) if number not in sizes)
    return example.take(np.arange(rows) % len(example)).data  # repeated if it is shorter


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence the exporter: it prints its progress and refused graphs, and warns of each missing optional library."""
    with ExitStack() as restored, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        restored.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in ("onnx", "export", "_export", "fx", "_dynamo"):
            logger = logging.getLogger(f"torch.{name}")
            restored.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        restored.callback(setattr, torch._C, "_jit_onnx_log", torch._C._jit_onnx_log)
        torch._C._jit_onnx_log = lambda *words: None  # `verbose` does not keep it from printing (torch 2.13)
        yield


def _to_onnx(
    model: TrainedModel,
    arguments: tuple[torch.Tensor, ...],
    names: list[str],
    outputs: list[str],
    dynamic_axes: DynamicAxes,
    legacy: bool,
) -> ModelProto:
    """Return the ModelProto, its weights inline. Raises ConversionError with the first line of the exporter."""
    legacy = legacy or isinstance(model, torch.jit.ScriptModule)
    options: dict[str, object] = {"input_names": names, "output_names": outputs, "verbose": False, "dynamo": not legacy}
    for operator in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        # for free lengths the exporter replaces their kernels, and not what an earlier export has cached (torch 2.13)
        operator._dispatch_cache.clear()
    try:
        with _silenced():
            if legacy:
                axes = {
                    name: {0: "batch", **{axis: f"{name}_{axis}" for axis in dynamic_axes.get(name, ())}}
                    for name in names
                }
                buffer = io.BytesIO()
                torch.onnx.export(model, arguments, buffer, dynamic_axes=axes, **options)
                return onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))
            options["custom_translation_table"] = _TRANSLATIONS
            if not isinstance(model, ExportedProgram):
                rows = Dim("batch")
                shapes = tuple({0: rows, **dict.fromkeys(dynamic_axes.get(name, ()), Dim.DYNAMIC)} for name in names)
                is_variadic = any(one.kind is one.VAR_POSITIONAL for one in _signature(model).values())
                options["args"] = arguments
                options["dynamic_shapes"] = (shapes,) if is_variadic else shapes
                if _by_keyword(model, names):
                    options["args"] = ()
                    options["kwargs"] = dict(zip(names, arguments, strict=True))
                    options["dynamic_shapes"] = dict(zip(names, shapes, strict=True))
            # By default it chooses kernels with another layout of tensors than its decompositions (torch 2.13).
            with sdpa_kernel(SDPBackend.MATH):
                program = torch.onnx.export(model, **options)
            NameFixPass()(program.model)  # an output may have a name of the exporter's own (`var`, `trunc`)
            return program.model_proto
    except Exception as error:
        cause = error.__cause__ or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = plain_reason(lines[0]) if lines else type(error).__name__
        if fixed := _FIXED_SIZE.search(str(cause)):
            reason = f"its forward fixes a size that differs between the data ({fixed['size']} of {fixed['place']})"
        if any(isinstance(one, GuardOnDataDependentSymNode) for one in (cause, cause.__cause__)):
            reason = f"its forward decides by the values of its tensors; torch.where does so in a graph ({reason})"
        raise ConversionError(f"{type(model).__name__} cannot be converted to ONNX: {reason}") from error


def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *options: Any, **named: Any) -> Any:
    """Translate attention: a row without any allowed position is 0; the exporter's is a mean (torch 2.13)."""
    answer = aten_scaled_dot_product_attention(query, key, value, attn_mask, *options, **named)
    if attn_mask is None or attn_mask.dtype != ir.DataType.BOOL:
        return answer
    allowed = op.ReduceMax(op.Cast(attn_mask, to=ir.DataType.INT32), [-1])
    return op.Where(op.Cast(allowed, to=ir.DataType.BOOL), answer, op.CastLike(0.0, answer))


def _log_sigmoid(values: Any) -> Any:
    """Translate torch's logarithm of the sigmoid; the exporter's own is -inf below -88 (torch 2.13)."""
    return op.Neg(op.Softplus(op.Neg(values)))


def _one_hot(ids: Any, num_classes: int) -> Any:
    """Translate `one_hot`, which refuses ids as an embedding does; the exporter's own answers zeros (torch 2.13)."""
    classes = op.Constant(value=onnx.numpy_helper.from_array(np.arange(num_classes)))
    return op.Cast(op.Equal(op.Unsqueeze(op.Gather(classes, ids), [-1]), classes), to=ir.DataType.INT64)


def _gather(values: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    """Translate `gather`, which refuses negative positions; ONNX counts them from the end, as a length of 0 minus 1."""
    if not (values.shape and index.shape):
        return aten_gather(values, dim, index)
    is_negative, beyond = op.Less(index, op.Constant(value_int=0)), op.Constant(value_int=np.iinfo(np.int64).max)
    return op.GatherElements(values, op.Where(is_negative, beyond, index), axis=dim)


_TRANSLATIONS = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.one_hot.default: _one_hot,
    torch.ops.aten.gather.default: _gather,
}


@contextmanager
def _eval_mode(module: TrainedModel) -> Iterator[None]:
    """Switch to `eval` mode, and afterwards each layer to its own mode again: some may be frozen in training."""
    if isinstance(module, ExportedProgram):
        yield  # it has the mode in which it was exported
        return
    modes = [(layer, layer.training) for layer in module.modules()]
    with suppress(NotImplementedError):  # a traced graph, as MLflow's format pt2 holds, has no modes but its own
        module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def original_model(model: TrainedModel, of_tensors: bool = False) -> OriginalModel:
    """Return predictions by output name. `of_tensors` refuses other values, such as a decoder's cache."""
    module = model.module() if isinstance(model, ExportedProgram) else model
    parameters = _parameters(model)

    def original(batch: ModelInput) -> dict[str, Array]:
        if isinstance(batch, pd.DataFrame) or set(batch) == {""}:
            order = parameters[:1]
        else:
            order = [name for name in parameters if name in batch] or list(batch)
        tensors = _tensors(batch, order, model)
        with _eval_mode(model), torch.no_grad():
            named = dict(zip(order, tensors, strict=True)) if _by_keyword(model, order) else {}
            answers = by_name(module(**named) if named else module(*tensors), of_tensors)
        return {name: answer.detach().cpu().numpy() for name, answer in answers.items()}

    return original


def by_name(answer: object, of_tensors: bool, name: str = "") -> dict[str, torch.Tensor]:
    """Return a module's nested result by output names: `output`, `output_1`, the keys of a mapping, fields."""
    if isinstance(answer, torch.Tensor):
        if answer.dtype == torch.bfloat16:
            raise ConversionError(f"the module's forward answers bfloat16, {_NO_BFLOAT16}")
        return {name or "output": answer}
    if is_dataclass(answer) and not isinstance(answer, dict):
        with suppress(ValueError):  # it is registered already
            torch.export.register_dataclass(type(answer))  # Otherwise the exporter does not know it.
        answer = {entry.name: getattr(answer, entry.name) for entry in fields(answer)}
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):  # a NamedTuple
        answer = answer._asdict()
    if isinstance(answer, dict):
        parts = {f"{name}.{key}" if name else str(key): part for key, part in answer.items()}
    elif isinstance(answer, list | tuple):
        parts = {f"{name or 'output'}_{position}": part for position, part in enumerate(answer)}
    elif answer is None or (name and not of_tensors):
        return {}
    else:
        kind = type(answer).__name__
        way = "; model.config.use_cache = False leaves it out" if kind.endswith("Cache") else ""  # of transformers
        raise ConversionError(f"the module's forward answers a {kind}, which is not a tensor{way}")
    return {
        key: tensor for part_name, part in parts.items() for key, tensor in by_name(part, of_tensors, part_name).items()
    }


def _tensors(batch: ModelInput, names: list[str], model: TrainedModel) -> tuple[torch.Tensor, ...]:
    """Return the arguments of `forward` on the module's device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(batch, pd.DataFrame):
        return (torch.from_numpy(batch.to_numpy(dtype=np.float32)).to(device),)
    arrays = [batch[name] for name in names] if "" not in batch else [batch[""]]
    return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)


def _parameters(model: TrainedModel) -> list[str]:
    if isinstance(model, ExportedProgram):
        return list(model.graph_signature.user_inputs)
    if isinstance(model, torch.jit.ScriptModule):
        return [argument.name for argument in model.forward.schema.arguments[1:]]  # the first is self
    return list(_signature(model))


def _by_keyword(model: TrainedModel, names: list[str]) -> bool:
    """Return True if `forward` takes the inputs by their names: an earlier parameter keeps its default, or needs it."""
    parameters = _parameters(model)
    if not set(names) <= set(parameters):
        return False
    needed = not isinstance(model, ExportedProgram | torch.jit.ScriptModule) and any(
        _signature(model)[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names
    )
    return needed or parameters[: len(names)] != names


def _signature(model: TrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _array(values: ModelData) -> Array:
    if isinstance(values, torch.Tensor) and values.dtype == torch.bfloat16:
        raise InvalidConfig(f"input_example: it holds bfloat16, {_NO_BFLOAT16}")
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
