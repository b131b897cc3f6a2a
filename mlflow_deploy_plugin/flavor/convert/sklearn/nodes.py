"""Adding nodes and constants to a graph that skl2onnx is making."""

from typing import Any

from skl2onnx.operator_converters.common import concatenate_variables

_VERSIONS = {
    1: ("Not",),
    7: ("And",),
    9: ("TfIdfVectorizer",),
    10: ("StringNormalizer",),
    13: (
        *("ArgMax", "Concat", "Exp", "Gather", "Greater", "Log", "MatMul", "Max", "Min", "Neg", "ReduceSum"),
        *("Reshape", "Sigmoid", "Softmax"),
    ),
    14: ("Add", "Div", "Mul", "Sub"),
    15: ("Pow",),
    16: ("GreaterOrEqual", "Identity", "Where"),
    18: ("ReduceL1", "ReduceL2", "ReduceMax"),
    19: ("Cast", "Equal", "Shape"),
    20: ("IsNaN", "RegexFullMatch"),
}
_OPERATORS = {
    **{operator: ("", version) for version, operators in _VERSIONS.items() for operator in operators},
    "LabelEncoder": ("ai.onnx.ml", 2),
    "TreeEnsembleRegressor": ("ai.onnx.ml", 3),
    "Tokenizer": ("com.microsoft", 1),
}
"""Domain and version of each operator that `NodeBuilder` adds."""


class NodeBuilder:
    """Adds nodes and constants to a graph that skl2onnx is making, each under a name of its own."""

    def __init__(self, scope: Any, container: Any) -> None:
        self._scope, self._container = scope, container

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        domain, version = _OPERATORS[operator]
        result = output or str(self._scope.get_unique_variable_name(f"onnxserve_{operator.lower()}"))
        name = self._scope.get_unique_operator_name(operator)
        self._container.add_node(
            operator, inputs, [result], op_domain=domain, op_version=version, name=name, **attributes
        )
        return result

    def constant(self, kind: int, shape: list[int], values: list[Any]) -> str:
        """Add an initializer of an ONNX type, and return its name."""
        name = str(self._scope.get_unique_variable_name("onnxserve_constant"))
        self._container.add_initializer(name, kind, shape, values)
        return name

    def all_columns(self, operator: Any) -> str:
        """Return the inputs of an estimator, joined to [N, k]."""
        joined = concatenate_variables(self._scope, operator.inputs, self._container)
        return str(joined if isinstance(joined, str) else joined[0])
