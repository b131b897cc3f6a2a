"""MLServer's custom runtime around ONNX Runtime, with two changes for Triton's
perf_analyzer: it answers `/config`, which MLServer does not have, and its output has no
`parameters`, in which perf_analyzer expects the size of binary data.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        uri = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(
            uri,
            options,
            providers=["CPUExecutionProvider"],
        )
        self.input = self.session.get_inputs()[0].name
        self.dtype = np.float64 if "double" in self.session.get_inputs()[0].type else np.float32
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = NumpyCodec.decode_input(payload.inputs[0]).astype(self.dtype, copy=False)
        answer = self.session.run(None, {self.input: inputs})[0]
        output = NumpyCodec.encode_output("predictions", answer)
        output.parameters = None
        return InferenceResponse(model_name=self.name, outputs=[output])

    @custom_handler(rest_path="/v2/models/small/config", rest_method="GET")
    async def config(self) -> dict[str, object]:
        return {
            "name": "small",
            "platform": "onnxruntime_onnx",
            "max_batch_size": 0,
            "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [-1, 30]}],
            "output": [{"name": "predictions", "data_type": "TYPE_INT64", "dims": [-1]}],
        }
