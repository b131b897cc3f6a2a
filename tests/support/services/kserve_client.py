"""Send requests to a server with the KServe client, in a separate program since kserve
conflicts with pinned packages.

    PYTHON kserve_client.py http://HOST:PORT HOST:GRPC_PORT ENDPOINT

The endpoint must have the input `image` (float32 [N, 2, 2]) and the outputs `doubled`
and `total`. The program prints one JSON object with the result of each call.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import numpy as np
from httpx import HTTPStatusError
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

IMAGES = np.arange(8, dtype=np.float32).reshape(2, 2, 2)


def request(name: str, is_binary: bool) -> InferRequest:
    tensor = InferInput("image", list(IMAGES.shape), "FP32")
    tensor.set_data_from_numpy(IMAGES, binary_data=is_binary)
    return InferRequest(model_name=name, infer_inputs=[tensor], request_id="mine")


def told(response: Any) -> dict[str, Any]:
    outputs = {output.name: output.as_numpy().tolist() for output in response.outputs}
    return {"id": response.id, "model": response.model_name, "outputs": outputs}


async def error_of(answer: Awaitable[Any]) -> str:
    try:
        await answer
    except HTTPStatusError as error:
        return str(error)
    return ""


async def over_rest(url: str, name: str) -> dict[str, Any]:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, name),
            "json": told(await client.infer(url, request(name, False), model_name=name)),
            "binary": told(await client.infer(url, request(name, True), model_name=name)),
            "error": await error_of(
                client.infer(url, request("nobody", False), model_name="nobody")
            ),
        }


async def over_v1(url: str, name: str) -> Any:
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        return {
            "live": await client.is_server_live(url),
            "model ready": await client.is_model_ready(url, name),
            **await client.infer(url, {"instances": IMAGES.tolist()}, model_name=name),
        }


async def over_grpc(address: str, name: str) -> dict[str, Any]:
    async with InferenceGRPCClient(address) as client:
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(name),
            "binary": told(await client.infer(request(name, True))),
        }


async def main() -> None:
    url, address, name = sys.argv[1:]
    answers = {
        "rest": await over_rest(url, name),
        "v1": await over_v1(url, name),
        "grpc": await over_grpc(address, name),
    }
    print(json.dumps(answers))  # noqa: T201


asyncio.run(main())
