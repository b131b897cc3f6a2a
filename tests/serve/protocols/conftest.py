"""The same models served by MLflow's scoring server and by ours."""

import threading
from typing import Any

import pytest
import requests

from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.support.handling import handle
from tests.support.models import parse_graph
from tests.support.servers import opened, variant
from tests.support.waiting import wait_until

PAIR = """
pair (float[N,2] a, int64[N] b) => (float[N,2] scaled, int64[N] more) \
<float[1] two = {2.0}, int64[1] one = {1}> {
  scaled = Mul(a, two)
  more = Add(b, one)
}"""
IMAGE = "image (float[N,2,2] x) => (float[N,2,2] y) <float[1] two = {2.0}> { y = Mul(x, two) }"
SUM = """
sum (float[N,2] x) => (float[N,1] y, int64[N] n) <int64[1] axis = {1}> {
  y = ReduceSum(x, axis)
  z = ReduceSum<keepdims=0>(x, axis)
  n = Cast<to=7>(z)
}"""


STOCK = {
    "stock": SUM,
    "wide": "wide (float[N,2] x) => (float[N,2] y) { y = Neg(x) }",
    "uneven": """
uneven (float[N,2] x) => (float[N,2] y, float[N] z) <int64[1] axis = {1}> {
  y = Neg(x)
  z = ReduceSum<keepdims=0>(x, axis)
}""",
}


def save_originals(root):
    """Return the folder that MLflow serves and the folder that we serve, by name.

    For scikit-learn, MLflow serves the original. For our ONNX models, both folders are
    the same. `stock` is MLflow's own ONNX.
    """
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import Schema, TensorSpec
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    import mlflow_deploy_plugin

    random = np.random.default_rng(0)
    flights = pd.DataFrame(
        {
            "carrier": random.choice(["AA", "UA", "Zürich"], 200),
            "distance": random.uniform(100, 3000, 200),
            "hour": random.integers(0, 24, 200),
            "holiday": random.integers(0, 2, 200).astype(bool),
        }
    )
    late = (flights.hour + flights.holiday * 6 + (flights.carrier == "AA") * 4 > 14).map(
        {True: "late", False: "on time"}
    )
    columns = make_column_transformer(
        (StandardScaler(), ["distance", "hour"]),
        (OneHotEncoder(handle_unknown="ignore"), ["carrier", "holiday"]),
    )
    table = pd.DataFrame(random.normal(size=(50, 3)), columns=["a", "b", "c"])
    target = table.a * 2 - table.b + 0.5 * table.c + 1
    gaps = table.mask(random.random(table.shape) < 0.2)
    matrix = table.to_numpy()
    originals = {
        "mixed": (make_pipeline(columns, LogisticRegression()).fit(flights, late), flights),
        "regressor": (LinearRegression().fit(table, target), table),
        "gaps": (make_pipeline(SimpleImputer(), LinearRegression()).fit(gaps, target), gaps),
        "targets": (LinearRegression().fit(matrix, np.column_stack([target, -target])), matrix),
        "integers": (
            LogisticRegression().fit(matrix, target.round().clip(-1, 1).astype(int)),
            matrix,
        ),
        "booleans": (LogisticRegression().fit(matrix, target > 0), matrix),
        "probabilities": (LogisticRegression().fit(matrix, target > 0), matrix),
    }
    folders = {}

    for name, (model, example) in originals.items():
        theirs = root / name / "theirs"
        ours = root / name / "ours"
        predict: Any = "predict_proba" if name == "probabilities" else "predict"
        mlflow.sklearn.save_model(
            model,
            theirs,
            signature=infer_signature(example, model.predict(example)),
            serialization_format="cloudpickle",
            pip_requirements=[],
            pyfunc_predict_fn=predict,
        )
        mlflow_deploy_plugin.save_model(
            model, ours, input_example=example, pyfunc_predict_fn=predict
        )
        folders[name] = theirs, ours
    tensors = {
        "pair": (PAIR, {"a": np.ones((2, 2), np.float32), "b": np.ones(2, np.int64)}),
        "image": (IMAGE, np.ones((2, 2, 2), np.float32)),
    }
    for name, (graph, tensor) in tensors.items():
        mlflow_deploy_plugin.save_model(parse_graph(graph), root / name, input_example=tensor)
        folders[name] = root / name, root / name
    signatures = {
        "tensor": ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2))])),
        "named": ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x")])),
        "columns": infer_signature(pd.DataFrame({"p": [1.5], "q": [2.5]})),
        "bare": None,
    }
    for kind, graph in STOCK.items():
        for form, signature in signatures.items():
            name = f"{kind}-{form}"
            mlflow.onnx.save_model(
                parse_graph(graph), root / name, signature=signature, pip_requirements=[]
            )
            folders[name] = root / name, root / name
    return folders


@pytest.fixture(scope="module")
def scored_folders(tmp_path_factory):
    """See `save_originals`."""
    return save_originals(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="module")
def ask_mlflow(scored_folders):
    """Yield MLflow's scoring server, the application that `mlflow models serve` starts,
    on a real socket.
    """
    import uvicorn
    from mlflow import pyfunc
    from mlflow.pyfunc import scoring_server
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with pytest.MonkeyPatch.context() as patch:
        # init() sets the variable; the fixture restores it.
        patch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")
        mounts = [
            Mount(f"/{name}", app=scoring_server.init(pyfunc.load_model(str(theirs))))
            for name, (theirs, _) in scored_folders.items()
        ]
        config = uvicorn.Config(
            Starlette(routes=mounts),
            port=0,
            log_level="critical",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started, what="MLflow's scoring server")
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with requests.Session() as session:
            # uvicorn closes a connection whose body the application did not read.
            session.headers["Connection"] = "close"
            yield lambda model, *request: ask_over_http(session, f"{url}/{model}", *request)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def ask_ours(scored_folders, tmp_path_factory):
    """Yield our server, with one endpoint per model."""
    state_dir = tmp_path_factory.mktemp("ours") / "state"
    with opened(
        state_dir, {name: {"main": variant(ours)} for name, (_, ours) in scored_folders.items()}
    ) as server:

        def ask(model, method, path, content_type=None, body=b""):
            headers = {} if content_type is None else {"content-type": content_type}
            place = f"/endpoints/{model}{path}" if path == "/invocations" else path
            response = handle(server, RawRequest(method, place, headers, body))
            return response.status, response.body

        yield ask


def ask_over_http(session, url, method, path, content_type=None, body=b""):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = session.request(method, url + path, headers=headers, data=body, timeout=30)
    return response.status_code, response.content
