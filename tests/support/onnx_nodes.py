"""ONNX's own node test cases, limited to cases that ONNX Runtime runs and whose tensors
V2 can represent.
"""

import warnings
from dataclasses import dataclass
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import numpy as np

from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class NodeCase:
    """A graph of one operator, its input arrays, and the arrays that ONNX Runtime
    returns.
    """

    name: str
    graph: bytes
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def node_cases(every=1):
    """Return the cases with tensors of V2's datatypes, or those of every n-th module of
    ONNX. The import of a module makes its cases; that of all takes 8 s.
    """
    from onnx.backend.test.case import node

    modules = walk_packages(node.__path__, f"{node.__name__}.")
    names = sorted(module.name for module in modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns about the infinities that some cases contain.
        for name in names[::every]:
            import_module(name)
    collected = sorted(node._NodeTestCases, key=lambda case: str(case.name))
    cases = (_read(case) for case in collected)
    return [case for case in cases if case is not None]


def _read(case):
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        graph = case.model.SerializeToString()
        session = import_onnxruntime().InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        names = [node.name for node in session.get_inputs()]
        inputs = dict(
            zip(names, (np.asarray(array) for array in case.data_sets[0][0]), strict=True)
        )
        answers = [session.run(None, inputs) for _ in range(2)]
        # Operators that draw random numbers return different arrays, so that they are
        # excluded here.
        np.testing.assert_equal(*answers)
        answered = dict(zip([node.name for node in session.get_outputs()], answers[0], strict=True))
    except Exception:  # noqa: BLE001 - Cases that ONNX Runtime does not run are excluded.
        return None
    is_carried = all(
        isinstance(array, np.ndarray)
        and array.dtype.kind in "fiubOU"
        and array.dtype.name != "bfloat16"
        for array in (*inputs.values(), *answered.values())
    )
    if (
        not is_carried
        or not answered
        or "optional" in str([node.type for node in session.get_inputs()])
    ):
        return None
    return NodeCase(case.name, graph, inputs, answered)
