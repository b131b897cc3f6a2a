"""BentoML with ONNX Runtime: `bentoml serve bentoml_onnx:Classifier`."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    metrics={"enabled": True},
    logging={"access": {"enabled": False}},
)
class Classifier:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"],
            options,
            providers=["CPUExecutionProvider"],
        )
        self.name = self.session.get_inputs()[0].name
        self.dtype = np.float64 if "double" in self.session.get_inputs()[0].type else np.float32

    @bentoml.api
    def predict(self, inputs: list[list[float]]) -> dict[str, list[int]]:
        return {
            "predictions": self.session.run(None, {self.name: np.asarray(inputs, self.dtype)})[
                0
            ].tolist(),
        }
