"""Nets of torch in the form of estimators: those of skorch, and TabNet's regressor, by torch's exporter."""

import sys
from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common._topology import Operator, Scope, Variable
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType

from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.flavor.convert.sklearn.graph import OPSETS, NodeBuilder, register_converter

_ESTIMATORS = {
    "skorch": ("NeuralNetClassifier", "NeuralNetBinaryClassifier", "NeuralNetRegressor"),
    "pytorch_tabnet.tab_model": ("TabNetRegressor",),
}


def register() -> None:
    """Tell skl2onnx about the estimators of the libraries in use: a fitted one has imported its own."""
    for library, names in _ESTIMATORS.items():
        for name in names if library in sys.modules else ():
            register_converter(getattr(sys.modules[library], name), convert_net, name.endswith("Classifier"))


def convert_net(scope: Scope, operator: Operator, container: ModelComponentContainer) -> None:
    estimator, graph = operator.raw_operator, NodeBuilder(scope, container)
    answer = _add_net(graph, container, estimator, operator.inputs)
    *labels, values = operator.outputs
    values.type = FloatTensorType([None, None])
    graph.node("Identity", [answer], values.full_name)
    for output in labels:
        output.type = Int64TensorType([None])  # skorch answers the places of the classes
        label = output.full_name
        if hasattr(estimator, "threshold"):
            second = graph.node("Gather", [answer, np.array(1)], axis=1)
            above = graph.node("Greater", [second, np.array(estimator.threshold, np.float32)])
            graph.node("Cast", [above], label, to=TensorProto.INT64)
        else:
            graph.node("ArgMax", [answer], label, axis=1, keepdims=0)


def _add_net(
    graph: NodeBuilder, container: ModelComponentContainer, estimator: Estimator, inputs: list[Variable]
) -> str:
    """Add the graph of an estimator's net, and return the name of its answer, [N, …]."""
    import torch  # heavy, and of no use to other estimators

    from mlflow_deploy_plugin.flavor.convert.torch import export, original_model

    class Answer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if not hasattr(estimator, "network"):
                self.net, self.last = estimator.module_, estimator._get_predict_nonlinearity()
                return
            self.net, self.last = deepcopy(estimator.network), lambda answer: answer
            for layer in self.net.modules():
                if hasattr(layer, "virtual_batch_size") and hasattr(layer, "bn"):
                    layer.forward = layer.bn.forward  # it cuts the batch by numpy, which changes nothing after training

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            answer = self.net(rows)
            return self.last(answer[0] if isinstance(answer, tuple) else answer)

    Answer.__name__ = type(estimator).__name__  # which the exporter's errors name
    net = Answer().eval()
    rows = np.zeros((1, sum(variable.type.shape[1] for variable in inputs)), np.float32)
    exported = export(net, {"": rows}, ["rows"], {}, original_model(net))
    proto = onnx.compose.add_prefix(onnx.version_converter.convert_version(exported, OPSETS[""]), graph.name("net_"))
    graph.node("Cast", [graph.joined(inputs)], proto.graph.input[0].name, to=TensorProto.FLOAT)
    container.initializers.extend(proto.graph.initializer)
    container.nodes.extend(proto.graph.node)
    return str(proto.graph.output[0].name)
