"""Adding nodes and constants to a graph that skl2onnx is making, each under a name of its own."""

from typing import Any


def add_node(
    scope: Any, container: Any, operator: str, inputs: list[str], version: int, output: str = "", **attributes: Any
) -> str:
    """Adds a node with one output, and gives that output's name."""
    result = output or str(scope.get_unique_variable_name(f"onnxserve_{operator.lower()}"))
    name = scope.get_unique_operator_name(operator)
    container.add_node(operator, inputs, [result], op_version=version, name=name, **attributes)
    return result


def add_constant(scope: Any, container: Any, kind: int, shape: list[int], values: list[Any]) -> str:
    """Adds an initializer of an ONNX type, and gives its name."""
    name = str(scope.get_unique_variable_name("onnxserve_constant"))
    container.add_initializer(name, kind, shape, values)
    return name
