"""Every protocol serves a pyfunc that accepts missing texts and does not declare
outputs.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support import handling
from tests.support.bodies import v2_tensor
from tests.support.models import columns, write_pyfunc
from tests.support.refusals import mentions
from tests.support.servers import opened, variant
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

JSON = "application/json"
CODE = """
import time

class Names:
    def predict(self, data, params=None):
        time.sleep(float(data["wait"].iloc[0]))
        if data["name"].iloc[0] == "odd":
            return {"strange": data["wait"].to_numpy()}
        return {"known": data["name"].notna().to_numpy(), "half": data["wait"].to_numpy() / 2}

def _load_pyfunc(path):
    return Names()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    signature = columns(name="string", wait="double")
    write_pyfunc(folder, "names_of_people", CODE, signature)
    state_dir = folder / "state"
    with opened(state_dir, {"names": {"v": variant(folder)}}, ServerSpec(threads=2)) as server:
        yield server


@pytest.fixture
def ask(server):
    def ask(path, document, kind=JSON, status=200, method="POST"):
        response = handling.ask(server, path, method, document, content_type=kind)
        assert response.status == status, response.body
        if response.content_type == JSON:
            return json.loads(response.body)
        return response.body

    return ask


def tensors(*names, wait=0.0, **more):
    texts = v2_tensor("name", "BYTES", list(names))
    numbers = v2_tensor("wait", "FP64", [wait] * len(names))
    return {"inputs": [texts, numbers], **more}


def test_first_answer_defines_the_outputs(ask):
    assert ask("/v2/models/names", b"", method="GET")["outputs"] == []
    refused = ask("/v2/models/names/infer", tensors("a", outputs=[{"name": "other"}]), status=400)
    assert mentions(refused["error"], "'other'", "known", "half")

    answered = ask("/v2/models/names/infer", tensors("a", None, wait=0.01))

    assert [(entry["name"], entry["datatype"], entry["data"]) for entry in answered["outputs"]] == [
        ("known", "BOOL", [True, False]),
        ("half", "FP64", [0.005, 0.005]),
    ]
    outputs = ask("/v2/models/names", b"", method="GET")["outputs"]
    assert outputs == [
        {"name": "known", "datatype": "BOOL", "shape": [-1]},
        {"name": "half", "datatype": "FP64", "shape": [-1]},
    ]
    answer = ask("/v2/models/names/infer", tensors("a", outputs=[{"name": "half"}]))
    assert [entry["name"] for entry in answer["outputs"]] == ["half"]
    odd = ask("/v2/models/names/infer", tensors("odd"), status=400)["error"]
    assert mentions(odd, "'strange'", "'known'", "'half'")


def test_rows_with_missing_texts_are_captured(ask, server):
    ask("/invocations", {"dataframe_records": [{"name": None, "wait": 0.0}]})
    ask("/v2/models/names/infer", tensors(None))

    captured = read_spool(server.capture.spool)
    for request in captured[-2:]:
        assert request.feeds["name"].tolist() == [None]
        assert request.outputs["known"].tolist() == [False]


@pytest.mark.parametrize("path", ["/v2/models/names/infer", "/invocations"])
def test_waiting_time_is_queue_time(ask, server, path):
    def seconds(kind):
        (stats,) = ask("/v2/models/names/stats", b"", method="GET")["model_stats"]
        return float(stats["inference_stats"][kind]["ns"]) / 1e9

    process = server.repository.select_variant("names").loaded.predictor._process
    queued = seconds("queue")
    computed = seconds("compute_infer")
    row = tensors("a") if "infer" in path else {"dataframe_records": [{"name": "a", "wait": 0.0}]}
    with ThreadPoolExecutor(2) as pool:
        first = [
            pool.submit(ask, "/v2/models/names/infer", tensors("a", wait=1.5)) for _ in range(2)
        ]
        wait_until(lambda: process._turn._value == 0, what="as many requests as there are threads")
        ask(path, row)
        for request in first:
            request.result(60)
    assert seconds("queue") - queued > 0.1
    assert seconds("compute_infer") - computed > 2.8
