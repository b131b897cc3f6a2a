"""LitServe with ONNX Runtime: `litserve_onnx.py MODEL PORT [MAX_BATCH_SIZE]`."""

import sys

import litserve as ls
import numpy as np
import onnxruntime


class OnnxAPI(ls.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            sys.argv[1],
            options,
            providers=["CPUExecutionProvider"],
        )
        self.name = self.session.get_inputs()[0].name
        self.dtype = np.float64 if "double" in self.session.get_inputs()[0].type else np.float32

    def decode_request(self, request):
        return np.asarray(request["inputs"], dtype=self.dtype)

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x):
        return self.session.run(None, {self.name: x})[0]

    def unbatch(self, output):
        return [output[i : i + 1] for i in range(len(output))]

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    size = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    api = OnnxAPI(max_batch_size=size, batch_timeout=0.0005) if size > 1 else OnnxAPI()
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
