"""mosec with ONNX Runtime and orjson: Rust receives the requests, and one Python worker
answers them.
"""

import os

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker


class OnnxWorker(Worker):
    def __init__(self):
        super().__init__()
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

    def deserialize(self, data):
        return np.asarray(orjson.loads(data)["inputs"], dtype=self.dtype)

    def forward(self, rows):
        return self.session.run(None, {self.name: rows})[0]

    def serialize(self, answer):
        return orjson.dumps({"predictions": answer.tolist()})


if __name__ == "__main__":
    server = Server()
    server.append_worker(OnnxWorker, num=1)
    server.run()
