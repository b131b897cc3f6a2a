"""Change the graph from skl2onnx: add nodes of this package's converters and casts
between floats, and set the outputs.

The floats of each precision:

- `single`: 32 bits throughout
- `double_until_last_step`: 64 bits, rounded to 32 bits before the predictor, as in
  scikit-learn's trees
- `double`: 64 bits throughout
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper
from skl2onnx import update_registered_converter
from skl2onnx._parse import _parse_sklearn, sklearn_parsers_map
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common._topology import Operator, Scope, Variable
from skl2onnx.common.data_types import (
    DataType,
    DoubleTensorType,
    FloatTensorType,
    Int64TensorType,
    StringTensorType,
)
from skl2onnx.operator_converters.common import concatenate_variables
from skl2onnx.sklapi import CastTransformer
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.serve.runtime.artifact import Output, Role
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.convert.converted import DTYPES, dtype_and_shape
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    ENCODERS,
    Estimator,
    compares_in_64_bits,
    first_steps,
    last_step,
    named_steps,
    passes_on,
    sub_estimators,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import SeveralTargets

OPSETS = {"": 21, "ai.onnx.ml": 3}
"""The opsets: skl2onnx's defaults do not support IsolationForest, and newer opsets need
a newer runtime.
"""
_ONNX_TYPES = {name: kind for kind, name in DTYPES.items()}
VARIABLE_TYPES = {
    "int64": Int64TensorType,
    "float32": FloatTensorType,
    "float64": DoubleTensorType,
    "object": StringTensorType,
}
"""The types of skl2onnx's variables by the name of the dtype."""


NodeInput: TypeAlias = npt.ArrayLike
"""The name of a value, or a constant: an array, or a list of 64-bit numbers or
booleans.
"""

ConvertsOperator: TypeAlias = Callable[[Scope, Operator, ModelComponentContainer], None]
"""A skl2onnx converter, which adds the nodes of an operator to the container."""


class NodeBuilder:
    """A builder that adds nodes and constants with unique names to skl2onnx's graph."""

    def __init__(self, scope: Scope, container: ModelComponentContainer) -> None:
        self._scope = scope
        self._container = container

    def node(
        self, operator: str, inputs: Sequence[NodeInput], output: str = "", **attributes: Any
    ) -> str:
        """Add a node with one output, and return the output's name: `output`, or a
        unique name.
        """
        return self.nodes(operator, inputs, 1, output, **attributes)[0]

    def nodes(
        self,
        operator: str,
        inputs: Sequence[NodeInput],
        count: int,
        output: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Add a node with several outputs, and return their names.

        Args:
            operator: the ONNX operator.
            inputs: the inputs of the node.
            count: the number of outputs.
            output: the name of the only output, or "" for unique names.
            **attributes: the attributes of the node.
        """
        domain, version = _domain_and_version(operator)
        names: list[str] = []
        for item in inputs:
            if isinstance(item, str):
                names.append(item)
            else:
                names.append(self.constant(item))
        results = [output] if output else [self.name(operator.lower()) for _ in range(count)]
        name = self._scope.get_unique_operator_name(f"onnxserve_{operator}")
        self._container.add_node(
            operator, names, results, op_domain=domain, op_version=version, name=name, **attributes
        )
        return results

    def cast(self, value: str, kind: int) -> str:
        """Add a cast to an ONNX type, and return the output's name."""
        return self.node("Cast", [value], to=kind)

    def row_count(self, rows: str) -> str:
        """Add the number of rows, [1], and return its name."""
        return self.node("Shape", [rows], start=0, end=1)

    def name(self, kind: str = "value") -> str:
        """Return a unique name for a value of the graph."""
        return str(self._scope.get_unique_variable_name(f"onnxserve_{kind}"))

    def constant(self, values: npt.ArrayLike, kind: str = "constant") -> str:
        """Add an array as an initializer, with objects as strings, and return its name,
        which contains `kind`.
        """
        array = np.asarray(values)
        name = self.name(kind)
        flat = array.ravel().tolist()
        if array.dtype.kind == "O":
            flat = [str(text).encode() for text in flat]
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        self._container.add_initializer(name, dtype, list(array.shape), flat)
        return name

    def equal_blocks(self, count: str, largest: NodeInput) -> tuple[str, str]:
        """Divide `count` rows into equal blocks of at most `largest` rows. Return the
        names of the block count and of the block size.
        """
        block_count = self._quotient_rounded_up(count, largest)
        return block_count, self._quotient_rounded_up(count, block_count)

    def _quotient_rounded_up(self, number: str, divisor: NodeInput) -> str:
        """Add (number + divisor - 1) / divisor for integers, and return its name."""
        total = self.node("Add", [number, divisor])
        return self.node("Div", [self.node("Sub", [total, [1]]), divisor])

    def subgraph(self) -> "Subgraph":
        return Subgraph(self._scope)

    def sub_model(
        self, estimator: Estimator, inputs: list[Variable], raw_scores: bool
    ) -> list[str]:
        """Add an estimator's graph and return the names of its outputs. `raw_scores`
        are scores instead of probabilities; raises NotImplementedError if skl2onnx does
        not support them for the estimator.
        """
        last = last_step(estimator)
        self._set_option(last, "zipmap", False)
        self._set_option(last, "raw_scores", raw_scores)
        return [
            str(variable.full_name) for variable in _parse_sklearn(self._scope, estimator, inputs)
        ]

    def _set_option(self, estimator: Estimator, option: str, value: bool) -> None:
        """Set an option of skl2onnx for an estimator. An option that the estimator does
        not have raises NotImplementedError if the value is True.
        """
        if self._container.has_options(estimator, option):
            for owner in (self._scope, self._container):
                owner.add_options(id(estimator), {option: value})
        elif value:
            raise NotImplementedError(f"the scores of the inner {type(estimator).__name__}")

    def variable(self, name: str, kind: DataType) -> Variable:
        """Return a skl2onnx variable for an array of the graph, for use as the input of
        an estimator.
        """
        variable = self._scope.declare_local_variable("onnxserve_rows", kind)
        self.node("Identity", [name], variable.full_name)
        return variable

    def declare(self, estimator: Estimator, inputs: list[Variable]) -> Operator:
        """Declare an operator for an estimator that a formula converts, so that
        `mark_refused_rows` finds the estimator and its inputs.
        """
        operator = self._scope.declare_local_operator("OnnxserveAsked", estimator)
        operator.inputs = inputs
        operator.init_status(is_evaluated=True)  # skl2onnx does not convert evaluated operators.
        return operator

    def joined(self, inputs: list[Variable]) -> str:
        """Concatenate skl2onnx's variables to a matrix [N, k]."""
        if len(inputs) == 1:  # The shape may be unknown (stacking).
            return str(inputs[0].full_name)
        joined = concatenate_variables(self._scope, inputs, self._container)
        if not isinstance(joined, str):
            joined = joined[0]
        return str(joined)


_REGISTERING = Lock()


@contextmanager
def own_converters() -> Iterator[None]:
    """Make skl2onnx use `parse_columns` and the registered converters within the
    context, then restore its tables.
    """
    tables = sklearn_operator_name_map, sklearn_parsers_map
    with _REGISTERING:
        before = [dict(table) for table in tables]
        sklearn_parsers_map[ColumnTransformer] = parse_columns
        try:
            yield
        finally:
            for table, earlier in zip(tables, before, strict=True):
                table.update(earlier)
                for kind in table.keys() - earlier.keys():
                    del table[kind]


def register_converter(
    kind: type, convert: ConvertsOperator, has_labels: bool, keeps_type: bool = False
) -> None:
    """Register a converter with two outputs (labels and probabilities) or with one
    output.

    skl2onnx's parser supports only ClassifierMixin, and declares a second output for
    clusters and outliers.

    Args:
        kind: the class of the estimators.
        convert: the converter, which sets the types of the outputs.
        has_labels: True for labels and probabilities.
        keeps_type: True if the output has the type of the input, for example strings.
    """
    alias = f"Onnxserve{kind.__name__}"

    def parse(
        scope: Scope, model: Estimator, inputs: list[Variable], custom_parsers: object = None
    ) -> list[Variable]:
        operator = scope.declare_local_operator(alias, model)
        operator.inputs = inputs
        values_type = type(inputs[0].type) if keeps_type else FloatTensorType
        if has_labels:
            operator.outputs.append(scope.declare_local_variable("label", Int64TensorType()))
        operator.outputs.append(scope.declare_local_variable("values", values_type()))
        return list(operator.outputs)

    options = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
    update_registered_converter(kind, alias, no_shapes, convert, parser=parse, options=options)


def no_shapes(operator: Operator) -> None:
    """Do nothing. skl2onnx then calls the converter of the operator, which sets the
    output types.
    """


def parse_columns(
    scope: Scope, model: Estimator, inputs: list[Variable], custom_parsers: object = None
) -> list[Variable]:
    """Return strings and numbers of a ColumnTransformer separately. Joining both would
    cut numbers to eight digits.
    """
    columns = _InputColumns.of(model, inputs)
    parts: list[Variable] = []
    for name, step, positions in named_steps(model):
        picked = columns.pick(scope, positions)
        if passes_on(step):
            parts += picked
            continue
        span = model.output_indices_[name]
        reads_columns = isinstance(first_steps(step)[0], ColumnTransformer | ENCODERS)
        if len(picked) > 1 and not reads_columns:  # The step needs one input.
            kind = type(picked[0].type)([None, None])
            picked = [_declare(scope, "SklearnConcat", picked, kind)]
        parsed: list[Variable] = _parse_sklearn(scope, step, picked)
        if not isinstance(last_step(step), ColumnTransformer):  # Its parts have widths.
            parsed[0].type = type(parsed[0].type)([None, span.stop - span.start])
            parsed = parsed[:1]
        parts += parsed
    is_mixed = len({isinstance(part.type, StringTensorType) for part in parts}) > 1
    if is_mixed or len(parts) == 1:
        return parts
    kind = type(parts[0].type)([None, None])
    return [_declare(scope, "SklearnConcat", parts, kind)]


@dataclass(frozen=True, eq=False)
class _InputColumns:
    """The columns of the variables that a ColumnTransformer reads.

    Attributes:
        names: the column names of the fitted table, or () for an array.
        widths: the number of columns of each variable.
        columns: the variable of each column, and the column's position in it.
    """

    inputs: list[Variable]
    names: Sequence[str]
    widths: list[int]
    columns: list[tuple[Variable, int]]

    @classmethod
    def of(cls, model: Estimator, inputs: list[Variable]) -> "_InputColumns":
        """Return the columns that a fitted ColumnTransformer reads. A single variable
        may have an unknown width, but has all columns.
        """
        if len(inputs) == 1:
            known_width = inputs[0].type.shape[1:]
            widths = [(known_width and known_width[0]) or model.n_features_in_]
        else:
            widths = [source.type.shape[1] for source in inputs]
        columns = []
        for source, width in zip(inputs, widths, strict=True):
            columns += [(source, index) for index in range(width)]
        names = getattr(model, "feature_names_in_", ())
        return cls(inputs, [str(name) for name in names], widths, columns)

    def pick(self, scope: Scope, positions: Sequence[int]) -> list[Variable]:
        """Return the variables with the columns at the positions. Adjacent columns of a
        variable are one variable.
        """
        names: list[str] = []
        if self.names and len(self.inputs) == len(self.columns):
            names = [self.names[position] for position in positions]
        by_name = {source.raw_name: (source, 0) for source in self.inputs}
        # Columns are found by name if each column is a variable with its name.
        if names and by_name.keys() >= {*names}:
            columns = [by_name[name] for name in names]
        else:
            columns = [self.columns[position] for position in positions]
        picked = []
        for variable, run in groupby(columns, lambda item: item[0]):
            indices = [index for _, index in run]
            if indices != list(range(self.widths[self.inputs.index(variable)])):
                variable = _declare(
                    scope,
                    "SklearnArrayFeatureExtractor",
                    [variable],
                    type(variable.type)([None, len(indices)]),
                    column_indices=indices,
                )
            picked.append(variable)
        return picked


def _declare(
    scope: Scope, operator: str, inputs: list[Variable], kind: DataType, **attributes: object
) -> Variable:
    """Add a built-in skl2onnx operator, and return its output variable."""
    declared = scope.declare_local_operator(operator)
    output = scope.declare_local_variable("columns", kind)
    declared.inputs = inputs
    declared.outputs.append(output)
    vars(declared).update(attributes)
    return output


class Subgraph(NodeBuilder):
    """The body of an `If` or a `Scan`. The body holds its constants, because outer
    constants make an `If` slower.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope, self)
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []

    def add_node(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        op_domain: str,
        op_version: int,
        **attributes: object,
    ) -> None:
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, domain=op_domain, **attributes)
        )

    def add_initializer(
        self, name: str, kind: int, shape: list[int], values: list[float] | list[bytes]
    ) -> None:
        self._initializers.append(helper.make_tensor(name, kind, shape, values))

    def finish(self, inputs: "Values", outputs: "Values") -> GraphProto:
        return helper.make_graph(
            self._nodes,
            "onnxserve_body",
            _value_infos(inputs),
            _value_infos(outputs),
            initializer=self._initializers,
        )


Values = dict[str, tuple[int, list[int | None]]]
"""The ONNX types and shapes of values by name; None is a free size."""


def _value_infos(values: Values) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, *value) for name, value in values.items()]


@cache
def _domain_and_version(operator: str) -> tuple[str, int]:
    """Return the domain of an operator and its version in the opset."""
    for domain, opset in OPSETS.items():
        if onnx.defs.has(operator, domain):
            return domain, int(onnx.defs.get_schema(operator, opset, domain).since_version)
    return "com.microsoft", 1  # These are Tokenizer and MurmurHash3.


Precision = Literal["single", "double_until_last_step", "double"]


def round_before_last_step(copy: Estimator) -> Estimator:
    """Round to 32 bits before the predictor, also in ensembles, except for estimators
    that compare in 64 bits.
    """
    if isinstance(copy, Pipeline):
        name, last = copy.steps[-1]
        rounded = round_before_last_step(last)
        if isinstance(rounded, Pipeline):
            copy.steps[-1:] = rounded.steps
        else:
            copy.steps[-1] = (name, rounded)
    elif isinstance(copy, SeveralTargets):
        copy.estimators_ = [round_before_last_step(part) for part in copy.estimators_]
    elif hasattr(copy, "predict") and not any(map(compares_in_64_bits, sub_estimators(copy))):
        rounding = CastTransformer(dtype=np.float32)
        return Pipeline([("onnxserve_round", rounding), ("model", copy)])
    return copy


def finish_outputs(graph: GraphProto, answers: dict[str, Array]) -> tuple[Output, ...]:
    """Set names, shapes and label types of the outputs as in the original's answers,
    drop the other outputs except `REFUSED_ROWS`, and return the descriptions of the
    outputs.
    """
    outputs = []
    values = []
    for (name, answer), value in zip(answers.items(), graph.output, strict=False):
        kind = answer.dtype.kind
        role: Role = "label"
        if name == "probabilities":
            role = "probabilities"
        elif name != "label" and kind == "f":
            role = "values"
        if role == "label":
            dtype = _LABEL_DTYPES.get(kind, "str")
        else:
            dtype = dtype_and_shape(value)[0]
        output = Output(name, dtype, (-1, *answer.shape[1:]), role)
        values.append(_finish_output(graph, output, value))
        outputs.append(output)
    values += [value for value in graph.output if value.name == REFUSED_ROWS]
    del graph.output[:]
    graph.output.extend(values)
    # ONNX Runtime would run unused nodes: 6,236 of 6,240 for an SVC with 50 classes.
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        nodes.append(node)
        nested = [node]  # and the nodes of its subgraphs, which the loop adds
        for inner in nested:
            needed.update(inner.input)
            for attribute in inner.attribute:
                nested.extend(attribute.g.node)
                needed.update(value.name for value in attribute.g.output)
    constants = [value for value in graph.initializer if value.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)
    return tuple(outputs)


_LABEL_DTYPES = {"b": "bool", "f": "float64", "i": "int64", "u": "int64"}
"""The dtype of labels by the kind of the original's labels. Other labels are
strings.
"""


def _finish_output(graph: GraphProto, output: Output, value: ValueInfoProto) -> ValueInfoProto:
    """Compute the output from the graph's value, and return its type and shape. Values
    with the names of both are renamed.
    """
    name = output.name
    new_names = {old: f"onnxserve_raw_{old}" for old in (value.name, name)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new_names.get(name, name) for name in names]
    current = new_names[value.name]
    kind = _ONNX_TYPES[output.dtype]
    # skl2onnx's float types may be wrong.
    if output.role != "label" or value.type.tensor_type.elem_type != kind:
        cast = f"{name}_cast"
        graph.node.append(
            helper.make_node("Cast", [current], [cast], name=f"onnxserve_{cast}", to=kind)
        )
        current = cast
    sizes = onnx.numpy_helper.from_array(np.array(output.shape, dtype=np.int64), f"{name}_shape")
    graph.initializer.append(sizes)
    graph.node.append(
        helper.make_node("Reshape", [current, sizes.name], [name], name=f"onnxserve_{name}")
    )
    return helper.make_tensor_value_info(name, kind, ["batch", *output.shape[1:]])
