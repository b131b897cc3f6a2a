"""The Open Inference Protocol V2 with Triton's own client and gunicorn."""

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from tests.support.servers import gunicorn, variant


@pytest.fixture(scope="module")
def client(tmp_path_factory, model_folders):
    state_dir = tmp_path_factory.mktemp("state")
    variants = {kind: {"v": variant(model_folders[kind], "7")} for kind in ("mixed", "tensor")}
    with gunicorn(state_dir, variants) as running:
        client = InferenceServerClient(running.url.removeprefix("http://"))
        yield client
        client.close()


def tensor(name, array, is_binary):
    input_tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    input_tensor.set_data_from_numpy(array, binary_data=is_binary)
    return input_tensor


def test_client_finds_server_and_model_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    ready = [("mixed", ""), ("mixed", "7"), ("mixed", "8"), ("none", "")]
    assert [client.is_model_ready(*target) for target in ready] == [True, True, False, False]
    extensions = "binary_tensor_data model_configuration model_repository statistics"
    assert client.get_server_metadata()["extensions"] == extensions.split()
    metadata = client.get_model_metadata("mixed")
    assert metadata["versions"] == ["7"]
    assert metadata["inputs"][0] == {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]}


@pytest.mark.parametrize("asks_binary", [False, True, None])
@pytest.mark.parametrize("is_binary", [False, True])
def test_client_reads_its_requested_outputs(client, is_binary, asks_binary):
    columns = {
        "carrier": np.array([["AA"], ["ÜÜ"]], dtype=object),
        "distance": np.zeros((2, 1)),
        "hour": np.zeros((2, 1), dtype=np.int32),
        "late": np.zeros((2, 1), dtype=np.bool_),
    }
    inputs = [tensor(name, array, is_binary) for name, array in columns.items()]
    wanted = None
    if asks_binary is not None:
        wanted = [
            InferRequestedOutput(name, binary_data=asks_binary)
            for name in ("probabilities", "label")
        ]
    result = client.infer("mixed", inputs, "7", outputs=wanted, request_id="mine")
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == ("mine", "7")
    labels = result.as_numpy("label").tolist()
    assert labels in (["yes", "no"], [b"yes", b"no"])
    chances = np.array([[0.2689414, 0.7310586], [0.5, 0.5]], np.float32)
    np.testing.assert_allclose(result.as_numpy("probabilities"), chances, atol=1e-6, strict=True)
