"""Convert torch modules and `torch.export` programs with the dynamo exporter, and
TorchScript with the legacy exporter.

Only the legacy exporter preserves the control flow and the free sizes of a ScriptModule
(torch 2.13).
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
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import onnx
import pandas as pd
import torch
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx_ir.passes.common import NameFixPass
from onnxscript import ir
from onnxscript import opset18 as op
from onnxscript.function_libs.torch_lib.ops.core import aten_gather
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.comparison import ROUNDINGS
from mlflow_deploy_plugin.wrap.convert.conversion_errors import plain_reason
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    TrainedModel,
)

_EXAMPLE_ROWS = 3
"""The minimum number of traced rows: with one row, the batch size of an LSTM or
Transformer is fixed at 1.
"""

_FIXED_SIZE = re.compile(
    r"inferred a static shape of (?P<size>\d+) for dimension (?P<place>\S+?)\.?(?:\s|$)"
)
_NO_BFLOAT16 = (
    "which numpy and requests do not support; convert the module to float32 with model.float()"
)


def read_batch(model: TrainedModel, data: ModelData) -> ModelInput:
    """Return a table unchanged, and other data as arrays by name.

    A mapping has names, the arrays of a tuple are in the order of `forward`, and a
    single array has the name "".
    """
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, dict):
        return {str(name): _array(values) for name, values in data.items()}
    if isinstance(data, tuple):
        pairs = zip(_parameters(model), data, strict=False)
        return {name: _array(values) for name, values in pairs}
    return {"": _array(data)}


def forms(
    model: TrainedModel, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return one form, the exported module. Raises InvalidConfig without an example or
    for `predict_proba`, and ConversionError for strings.
    """
    example = converted.require_example(batch, predict_fn, "a torch module", "forward")
    if any(array.dtype.kind in "OUT" for array in Batch(example).tensors.values()):
        raise ConversionError(
            f"{type(model).__name__} reads strings in Python; ONNX supports only the tensors "
            "after its tokenizer"
        )

    def form() -> ConvertedModel:
        """Return the graph of the module, with marks for ids outside an embedding."""
        module = getattr(model, "_orig_mod", model)  # torch.compile would recompile per batch size.
        parameters = _parameters(module)
        if isinstance(example, pd.DataFrame) or set(example) == {""}:
            names = [next(iter(parameters), "input")]
        else:
            for name in example:
                if name not in parameters:
                    raise InvalidConfig(
                        f"input_example: {type(module).__name__}.forward has no parameter "
                        f"{name!r}; it has {', '.join(parameters)}; a graph needs one array per "
                        "parameter, not a mapping or list"
                    )
            names = [name for name in parameters if name in example]
        original = original_model(module, of_tensors=True)
        with _eval_mode(module):
            proto = _mark_unknown_ids(export(module, example, names, dynamic_axes, original))
        bound = converted.bind_graph(proto, example, "torch", str(torch.__version__), original)
        return replace(bound, move_weights=partial(move_weights, module))

    return [form]


@contextmanager
def move_weights(module: TrainedModel, random: np.random.Generator) -> Iterator[None]:
    """Move each weight up or down at random by `ROUNDINGS` rounding steps, and restore
    the weights on exit.
    """
    weights = [
        tensor.data
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.is_floating_point()
    ]
    copies = [tensor.clone() for tensor in weights]
    try:
        for weight in weights:
            signs = random.choice([-1.0, 1.0], tuple(weight.shape))
            step = ROUNDINGS * torch.finfo(weight.dtype).eps
            weight.mul_(1 + step * torch.from_numpy(signs).to(weight))
        yield
    finally:
        for weight, values in zip(weights, copies, strict=True):
            weight.copy_(values)


def export(
    model: TrainedModel,
    batch: ModelInput,
    names: list[str],
    dynamic_axes: DynamicAxes,
    original: converted.OriginalModel,
    legacy: bool = False,
) -> ModelProto:
    """Export a module (or a program) in `eval` mode, and return the ModelProto.

    Args:
        model: the module or program.
        batch: the example, whose rows are traced.
        names: the inputs in the order of `forward`.
        dynamic_axes: the free axes of each input, in addition to its first dimension.
        original: the function for the original's predictions.
        legacy: True to trace with TorchScript.

    Raises:
        ConversionError: the exporter fails, or an output has the name of an input.
        InvalidConfig: the model refuses the batch.
    """
    # An unnamed tensor has the axes of the first input.
    axes = {names[0]: dynamic_axes.get("", ()), **dynamic_axes}
    traced = batch
    # A program may have a fixed batch size, which is the size of the example.
    if not isinstance(model, ExportedProgram):
        # The number of traced rows differs from all other dimensions.
        example = Batch(batch)
        sizes = set(chain.from_iterable(tensor.shape[1:] for tensor in example.tensors.values()))
        row_count = _EXAMPLE_ROWS
        while row_count in sizes:
            row_count += 1
        # A short example is repeated.
        traced = example.take(np.arange(row_count) % len(example)).data
    answers = converted.call_original(original, traced)
    for name in list(answers):
        if name in names:
            raise ConversionError(
                f"{_shown_name(model)} returns {name!r}, which is also the name of an input: names "
                "in a graph are unique; rename the output"
            )
    proto = _to_onnx(model, _tensors(traced, names, model), names, list(answers), axes, legacy)
    if any(dynamic_axes.values()) and isinstance(traced, dict):
        with suppress(InvalidConfig):  # The model may not accept this size.
            # The first entry of each free axis is repeated at its end.
            longer = dict(traced)
            for name, free_axes in dynamic_axes.items():
                for axis in free_axes:
                    longer[name] = np.append(longer[name], longer[name].take([0], axis), axis)
            _free_sizes(proto.graph, answers, converted.call_original(original, longer))
    return proto


def _free_sizes(graph: GraphProto, answers: dict[str, Array], longer: dict[str, Array]) -> None:
    """Free the output sizes that differ for a longer batch. The exporter fixes those of
    a GRU (torch 2.13).
    """
    for value in graph.output:
        dimensions = value.type.tensor_type.shape.dim
        sizes = zip(answers[value.name].shape, longer[value.name].shape, strict=False)
        for axis, (size, longer_size) in enumerate(sizes):
            if size != longer_size and dimensions[axis].dim_value:
                dimensions[axis].dim_param = f"{value.name}_{axis}"


def _mark_unknown_ids(proto: ModelProto) -> ModelProto:
    """Mark rows with ids outside an embedding in `REFUSED_ROWS`: torch refuses such
    ids, but ONNX's Gather does not.
    """
    graph = proto.graph
    embeddings = _find_embeddings(graph)
    if not embeddings:
        return proto
    nodes = list(graph.node)
    input_names = {entry.name for entry in graph.input}
    marks: list[str] = []
    reasons: dict[str, None] = {}
    del graph.node[:]
    for index, node in enumerate(nodes):
        if index in embeddings:
            embedding = embeddings[index]
            mark = f"{REFUSED_ROWS}_{len(marks)}"
            marks.append(mark)
            node.input[1] = _mark_ids(graph, embedding, mark)
            label = repr(embedding.ids) if embedding.ids in input_names else "an embedding"
            reasons[f"{label} accepts the ids 0 to {embedding.last}"] = None
        graph.node.append(node)
    graph.node.append(helper.make_node("Sum", marks, [REFUSED_ROWS], REFUSED_ROWS))
    graph.output.append(helper.make_tensor_value_info(REFUSED_ROWS, TensorProto.FLOAT, ["batch"]))
    helper.set_model_props(proto, {REFUSED_ROWS: ", and ".join(reasons)})
    return proto


class _Embedding(NamedTuple):
    """A Gather that looks up ids [N, …] in a table.

    Attributes:
        ids: the tensor of the ids.
        kind: the ONNX type of the ids.
        last: the largest id of the table.
        shape: the shape of a Reshape that flattens the ids of all rows before the
            Gather, or "".
    """

    ids: str
    kind: int
    last: int
    shape: str


def _find_embeddings(graph: GraphProto) -> dict[int, _Embedding]:
    """Return the embeddings whose ids have a first dimension of rows, by the position
    of their node.
    """
    values = {entry.name: entry.type.tensor_type for entry in (*graph.input, *graph.value_info)}
    batch = graph.input[0].type.tensor_type.shape.dim[:1]
    sizes = {entry.name: entry.dims[0] for entry in graph.initializer if entry.dims}
    makers = converted.makers_of(graph)
    embeddings = {}
    for index, node in enumerate(graph.node):
        if node.op_type != "Gather" or node.input[0] not in sizes:
            continue
        # The legacy exporter writes the Gather of an embedding without an axis.
        sources = " ".join(entry.value for entry in node.metadata_props)
        if "aten.embedding" not in sources and "aten.one_hot" not in sources and node.attribute:
            continue
        # An EmbeddingBag flattens the ids of all rows by a Reshape.
        ids = node.input[1]
        shape = ""
        maker = makers.get(ids)
        while maker and maker.op_type == "Reshape" and sizes.get(maker.input[1]) == 1:
            ids, shape = maker.input
            maker = makers.get(ids)
        if ids in values and values[ids].shape.dim[:1] == batch:
            embeddings[index] = _Embedding(
                ids=ids, kind=values[ids].elem_type, last=sizes[node.input[0]] - 1, shape=shape
            )
    return embeddings


def _mark_ids(graph: GraphProto, embedding: _Embedding, mark: str) -> str:
    """Add a mark [N] that is 0 if all ids of a row are in the table, and return the
    name of the clipped ids for the Gather.
    """
    ids = embedding.ids
    dtype = helper.tensor_dtype_to_np_dtype(embedding.kind)
    constants = {
        f"{mark}_least": np.array(0, dtype),
        f"{mark}_most": np.array(embedding.last, dtype),
        f"{mark}_axis": [1],
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    for operator, inputs, output, options in (
        ("Clip", (ids, f"{mark}_least", f"{mark}_most"), f"{mark}_ids", {}),
        ("Sub", (ids, f"{mark}_ids"), f"{mark}_excess", {}),
        ("Flatten", (f"{mark}_excess",), f"{mark}_flat", {}),
        ("Cast", (f"{mark}_flat",), f"{mark}_number", {"to": TensorProto.FLOAT}),
        ("ReduceL1", (f"{mark}_number", f"{mark}_axis"), mark, {"keepdims": 0}),
    ):
        graph.node.append(helper.make_node(operator, inputs, [output], output, **options))
    if not embedding.shape:
        return f"{mark}_ids"
    flat_ids = f"{mark}_all"
    graph.node.append(helper.make_node("Reshape", [f"{mark}_ids", embedding.shape], [flat_ids]))
    return flat_ids


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence the exporter, which prints its progress and failed graphs, and warns
    about missing optional libraries.
    """
    with ExitStack() as restored, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        restored.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in ("onnx", "export", "_export", "fx", "_dynamo"):
            logger = logging.getLogger(f"torch.{name}")
            restored.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        restored.callback(setattr, torch._C, "_jit_onnx_log", torch._C._jit_onnx_log)
        # The exporter prints even without `verbose` (torch 2.13).
        torch._C._jit_onnx_log = lambda *words: None
        yield


def _shown_name(model: TrainedModel) -> str:
    """Return the class name of the user's model, also for a module of this package that
    stands for it.
    """
    return str(getattr(model, "stands_for", type(model).__name__))


def _to_onnx(
    model: TrainedModel,
    arguments: tuple[torch.Tensor, ...],
    names: list[str],
    outputs: list[str],
    dynamic_axes: DynamicAxes,
    legacy: bool,
) -> ModelProto:
    """Return the ModelProto with inline weights. Raises ConversionError with the first
    line of the exporter's error.

    Args:
        model: the module or program.
        arguments: the tensors of the traced rows, in the order of `names`.
        names: the inputs of the graph.
        outputs: the outputs of the graph.
        dynamic_axes: the free axes of each input, in addition to its first dimension.
        legacy: True to trace with TorchScript, as for each ScriptModule.
    """
    for operator in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        # The exporter replaces kernels for free lengths, but not the kernels cached by
        # an earlier export (torch 2.13).
        operator._dispatch_cache.clear()
    try:
        with _silenced():
            if legacy or isinstance(model, torch.jit.ScriptModule):
                traced_axes = {}
                for name in names:
                    traced_axes[name] = {0: "batch"}
                    for axis in dynamic_axes.get(name, ()):
                        traced_axes[name][axis] = f"{name}_{axis}"
                buffer = io.BytesIO()
                torch.onnx.export(
                    model,
                    arguments,
                    buffer,
                    dynamic_axes=traced_axes,
                    input_names=names,
                    output_names=outputs,
                    verbose=False,
                    dynamo=False,
                )
                return onnx.shape_inference.infer_shapes(onnx.load_from_string(buffer.getvalue()))
            options: dict[str, object] = {}
            if not isinstance(model, ExportedProgram):
                options = _program_options(model, arguments, names, dynamic_axes)
            # The default kernels have another tensor layout than the exporter's
            # decompositions (torch 2.13).
            with sdpa_kernel(SDPBackend.MATH):
                program = torch.onnx.export(
                    model,
                    input_names=names,
                    output_names=outputs,
                    verbose=False,
                    dynamo=True,
                    custom_translation_table=_TRANSLATIONS,
                    **options,
                )
            # An output may have the same name as an exporter's value (`var`, `trunc`).
            NameFixPass()(program.model)
            return program.model_proto
    except Exception as error:
        # The exporter's error may have its cause in the user's `forward`.
        cause = error.__cause__ or error
        line = next(filter(None, map(str.strip, str(cause).splitlines())), "")
        reason = plain_reason(line) if line else type(error).__name__
        fixed = _FIXED_SIZE.search(str(cause))
        if fixed:
            reason = (
                f"its forward fixes a size that varies in the data ({fixed['size']} of "
                f"{fixed['place']})"
            )
        if any(
            isinstance(entry, GuardOnDataDependentSymNode) for entry in (cause, cause.__cause__)
        ):
            reason = f"its forward branches on tensor values; use torch.where instead ({reason})"
        raise ConversionError(
            f"{_shown_name(model)} cannot be converted to ONNX: {reason}"
        ) from error


def _program_options(
    model: TrainedModel,
    arguments: tuple[torch.Tensor, ...],
    names: list[str],
    dynamic_axes: DynamicAxes,
) -> dict[str, object]:
    """Return the arguments of the module and their free axes for torch's exporter."""
    rows = Dim("batch")
    shapes = tuple(
        {0: rows, **dict.fromkeys(dynamic_axes.get(name, ()), Dim.DYNAMIC)} for name in names
    )
    if _must_be_keywords(model, names):
        return {
            "args": (),
            "kwargs": dict(zip(names, arguments, strict=True)),
            "dynamic_shapes": dict(zip(names, shapes, strict=True)),
        }
    parameters = _signature(model).values()
    is_variadic = any(entry.kind is entry.VAR_POSITIONAL for entry in parameters)
    dynamic_shapes = (shapes,) if is_variadic else shapes
    return {"args": arguments, "dynamic_shapes": dynamic_shapes}


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *options: Any, **keywords: Any
) -> Any:
    """Translate attention. For a row without allowed positions, the exporter returns a
    mean instead of 0.
    """
    answer = aten_scaled_dot_product_attention(query, key, value, attn_mask, *options, **keywords)
    if attn_mask is None or attn_mask.dtype != ir.DataType.BOOL:
        return answer
    has_allowed = op.ReduceMax(op.Cast(attn_mask, to=ir.DataType.INT32), [-1])
    zero = op.CastLike(0.0, answer)
    return op.Where(op.Cast(has_allowed, to=ir.DataType.BOOL), answer, zero)


def _one_hot(ids: Any, num_classes: int) -> Any:
    """Translate `one_hot`, which refuses invalid ids; the exporter's translation
    returns zeros (torch 2.13).
    """
    classes = op.Constant(value=numpy_helper.from_array(np.arange(num_classes)))
    class_of_id = op.Unsqueeze(op.Gather(classes, ids), [-1])
    return op.Cast(op.Equal(class_of_id, classes), to=ir.DataType.INT64)


def _gather(values: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    """Translate `gather`, which refuses negative indices (such as length 0 minus 1);
    ONNX counts them from the end.
    """
    if not (values.shape and index.shape):
        return aten_gather(values, dim, index)
    is_negative = op.Less(index, op.Constant(value_int=0))
    beyond = op.Constant(value_int=np.iinfo(np.int64).max)
    return op.GatherElements(values, op.Where(is_negative, beyond, index), axis=dim)


_TRANSLATIONS = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    # The exporter's translation is -inf below -88 (torch 2.13).
    torch.ops.aten.log_sigmoid.default: lambda values: op.Neg(op.Softplus(op.Neg(values))),
    torch.ops.aten.one_hot.default: _one_hot,
    torch.ops.aten.gather.default: _gather,
}


@contextmanager
def _eval_mode(module: TrainedModel) -> Iterator[None]:
    """Switch to `eval` mode, then restore the mode of each layer: some layers may be
    frozen in training.
    """
    if isinstance(module, ExportedProgram):
        yield  # The mode of a program is fixed.
        return
    modes = [(layer, layer.training) for layer in module.modules()]
    with suppress(NotImplementedError):  # A traced graph (MLflow's format pt2) has a fixed mode.
        module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def original_model(model: TrainedModel, of_tensors: bool = False) -> converted.OriginalModel:
    """Return a function for predictions by output name. `of_tensors` rejects
    non-tensors, such as a cache.
    """
    module = model.module() if isinstance(model, ExportedProgram) else model
    parameters = _parameters(model)

    def original(batch: ModelInput) -> dict[str, Array]:
        if isinstance(batch, pd.DataFrame) or set(batch) == {""}:
            order = parameters[:1]
        else:
            order = [name for name in parameters if name in batch] or list(batch)
        tensors = _tensors(batch, order, model)
        with _eval_mode(model), torch.no_grad():
            if _must_be_keywords(model, order):
                answer = module(**dict(zip(order, tensors, strict=True)))
            else:
                answer = module(*tensors)
            answers = by_name(answer, of_tensors)
        return {name: answer.detach().cpu().numpy() for name, answer in answers.items()}

    return original


def by_name(answer: object, of_tensors: bool, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a nested result by output name: `output`, `output_1`, keys
    of a mapping, or fields.

    Args:
        answer: the result of `forward`, or a part of it.
        of_tensors: True to raise ConversionError for a part that is not a tensor; False
            to leave it out.
        name: the name of the part; "" for the whole result.
    """
    # A dataclass or a NamedTuple is read as a mapping by field.
    result: object = answer
    if is_dataclass(answer) and not isinstance(answer, dict):
        with suppress(ValueError):  # The class may be registered already.
            torch.export.register_dataclass(type(answer))  # The exporter requires registration.
        result = {entry.name: getattr(answer, entry.name) for entry in fields(answer)}
    elif isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        result = answer._asdict()
    if isinstance(result, torch.Tensor):
        if result.dtype == torch.bfloat16:
            raise ConversionError(f"the module's forward returns bfloat16, {_NO_BFLOAT16}")
        return {name or "output": result}
    if isinstance(result, dict):
        prefix = f"{name}." if name else ""
        parts = {f"{prefix}{key}": part for key, part in result.items()}
    elif isinstance(result, list | tuple):
        parts = {f"{name or 'output'}_{index}": part for index, part in enumerate(result)}
    elif result is None or (name and not of_tensors):
        parts = {}
    else:
        kind = type(result).__name__
        is_cache_of_transformers = kind.endswith("Cache")
        way = "; set model.config.use_cache = False" if is_cache_of_transformers else ""
        raise ConversionError(f"the module's forward returns a {kind}, which is not a tensor{way}")
    tensors: dict[str, torch.Tensor] = {}
    for part_name, part in parts.items():
        tensors |= by_name(part, of_tensors, part_name)
    return tensors


def _tensors(batch: ModelInput, names: list[str], model: TrainedModel) -> tuple[torch.Tensor, ...]:
    """Return the arguments of `forward` on the module's device."""
    devices = (parameter.device for parameter in model.parameters())
    device = next(devices, torch.device("cpu"))
    if isinstance(batch, pd.DataFrame):
        arrays = [batch.to_numpy(dtype=np.float32)]
    elif "" in batch:
        arrays = [np.ascontiguousarray(batch[""])]
    else:
        arrays = [np.ascontiguousarray(batch[name]) for name in names]
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _parameters(model: TrainedModel) -> list[str]:
    """Return the names of the parameters of `forward`, in order and without self."""
    if isinstance(model, ExportedProgram):
        return list(model.graph_signature.user_inputs)
    if isinstance(model, torch.jit.ScriptModule):
        return [argument.name for argument in model.forward.schema.arguments[1:]]
    return list(_signature(model))


def _must_be_keywords(model: TrainedModel, names: list[str]) -> bool:
    """Return True if the inputs must be passed by keyword: they are keyword-only, or
    other parameters come first.
    """
    parameters = _parameters(model)
    if not set(names) <= set(parameters):
        return False
    if parameters[: len(names)] != names:
        return True
    if isinstance(model, ExportedProgram | torch.jit.ScriptModule):
        return False
    signature = _signature(model)
    return any(signature[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names)


def _signature(model: TrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _array(values: ModelData) -> Array:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    if values.dtype == torch.bfloat16:
        raise InvalidConfig(f"input_example: it contains bfloat16, {_NO_BFLOAT16}")
    return np.asarray(values.detach().cpu().numpy())
