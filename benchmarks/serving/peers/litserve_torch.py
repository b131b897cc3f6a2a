"""LitServe with torch and batches of up to 32 rows: the body is a form with one row as
a file. `litserve_torch.py PORT` with NET (a file of TorchScript), DTYPE, SHAPE and
DEVICE.
"""

import os
import sys

import litserve as ls
import numpy as np
import torch
from fastapi import Response


class Net(ls.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.device = os.environ["DEVICE"]
        self.dtype = np.dtype(os.environ["DTYPE"])
        self.shape = tuple(map(int, os.environ["SHAPE"].split(",")))
        self.net = torch.jit.load(os.environ["NET"], map_location=self.device)

    def decode_request(self, request):
        return np.frombuffer(request["row"].file.read(), self.dtype).reshape(1, *self.shape)

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, x):
        with torch.inference_mode():
            return self.net(torch.from_numpy(x).to(self.device)).cpu().numpy()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = ls.LitServer(
        Net(max_batch_size=32, batch_timeout=0.0005),
        accelerator="cuda" if os.environ["DEVICE"] == "cuda" else "cpu",
        devices=1,
        workers_per_device=1,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
