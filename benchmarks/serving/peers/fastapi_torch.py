"""FastAPI with torch: the body is one row as bytes, and a function runs the module.
`uvicorn fastapi_torch:app` with NET (a file of TorchScript), DTYPE, SHAPE and DEVICE.
"""

import os

import numpy as np
import torch
from fastapi import Body, FastAPI, Response

app = FastAPI()
torch.set_num_threads(1)
device = os.environ["DEVICE"]
dtype = np.dtype(os.environ["DTYPE"])
shape = tuple(map(int, os.environ["SHAPE"].split(",")))
net = torch.jit.load(os.environ["NET"], map_location=device)


@app.get("/ping")
def ping():
    return {"status": "ok"}


@app.post("/predict")
def predict(body: bytes = Body(media_type="application/octet-stream")):
    x = torch.from_numpy(np.frombuffer(body, dtype).reshape(1, *shape).copy())
    with torch.inference_mode():
        y = net(x.to(device)).cpu().numpy()
    return Response(y.tobytes(), media_type="application/octet-stream")
