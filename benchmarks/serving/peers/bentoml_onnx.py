"""BentoML with ONNX Runtime: `bentoml serve bentoml_onnx:Classifier` with a MODEL, and
`bentoml_onnx:Classifiers` with a folder of models, MODELS.
"""

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime

SETTINGS = {
    "workers": 1,
    "traffic": {"timeout": 60},
    "metrics": {"enabled": True},
    "logging": {"access": {"enabled": False}},
}


class Session:
    def __init__(self, file: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            file,
            options,
            providers=["CPUExecutionProvider"],
        )
        self.name = self.session.get_inputs()[0].name
        self.dtype = np.float64 if "double" in self.session.get_inputs()[0].type else np.float32

    def predict(self, inputs: list[list[float]]) -> dict[str, list[int]]:
        return {
            "predictions": self.session.run(None, {self.name: np.asarray(inputs, self.dtype)})[
                0
            ].tolist(),
        }


@bentoml.service(**SETTINGS)
class Classifier:
    def __init__(self) -> None:
        self.session = Session(os.environ["MODEL"])

    @bentoml.api
    def predict(self, inputs: list[list[float]]) -> dict[str, list[int]]:
        return self.session.predict(inputs)


@bentoml.service(**SETTINGS)
class Classifiers:
    def __init__(self) -> None:
        files = Path(os.environ["MODELS"]).glob("*.onnx")
        self.sessions = {file.stem: Session(str(file)) for file in files}

    @bentoml.api
    def predict(self, name: str, inputs: list[list[float]]) -> dict[str, list[int]]:
        return self.sessions[name].predict(inputs)
