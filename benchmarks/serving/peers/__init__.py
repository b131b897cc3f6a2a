"""The compared servers, each with one worker and little logging, as its own
documentation recommends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
_MLFLOW = ("mlflow==3.17.2", "scikit-learn==1.9.1", "pandas<3.1", "cloudpickle")


@dataclass(frozen=True)
class Peer:
    """The installation and the start of a server.

    Attributes:
        requirements: of its environment; empty: it runs in ours.
        shown: the packages whose versions the table names.
        command: its words, in which `{bin}`, `{port}`, `{here}` and the names of
            `variables` are replaced.
        environment: variables, replaced likewise.
        path: where it takes `{"inputs": [[…]]}` (MLServer: its V2 form); `{name}` is
            the model of a server with several.
        polls: it is busy without requests, and is stopped while other servers are
            measured.
    """

    name: str
    command: str
    path: str
    requirements: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    is_v2: bool = False
    polls: bool = False


MLFLOW = Peer(
    "mlflow models serve",
    "{bin}/mlflow models serve -m {mlflow} -p {port} -h 127.0.0.1 --env-manager local",
    "/invocations",
    _MLFLOW,
    ("mlflow", "scikit-learn"),
    {"PATH": "{bin}:/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true"},
)
FASTAPI = Peer(
    "FastAPI + scikit-learn, uvicorn",
    "{bin}/uvicorn --app-dir {here} --port {port} --log-level warning --no-access-log "
    "fastapi_sklearn:app",
    "/predict",
    ("fastapi", "uvicorn[standard]", "scikit-learn==1.9.1"),
    ("fastapi", "uvicorn"),
    {"MODEL": "{pickled}"},
)
BENTOML = Peer(
    "BentoML + ONNX Runtime",
    "{bin}/bentoml serve --working-dir {here} -p {port} -q bentoml_onnx:Classifier",
    "/predict",
    ("bentoml", "onnxruntime==1.31.1"),
    ("bentoml",),
    {"MODEL": "{onnx}", "BENTOML_DO_NOT_TRACK": "true", "PATH": "{bin}:/usr/bin:/bin"},
    polls=True,
)
MLSERVER = Peer(
    "MLServer + ONNX Runtime",
    "{bin}/mlserver start {work}",
    "/v2/models/small/infer",
    ("mlserver", "onnxruntime==1.31.1"),
    ("mlserver",),
    {"PYTHONPATH": "{here}", "PATH": "{bin}:/usr/bin:/bin"},
    is_v2=True,
    polls=True,
)
MOSEC = Peer(
    "mosec + ONNX Runtime, orjson",
    "{bin}/python {here}/mosec_onnx.py --address 127.0.0.1 --port {port}",
    "/inference",
    ("mosec==0.9.8", "orjson", "onnxruntime==1.31.1"),
    ("mosec",),
    {"MODEL": "{onnx}"},
)
OURS = Peer(
    "onnxserve",
    "{python} -m mlflow_deploy_plugin.cli serve {ours} -p {port} -w 1 --name {name} "
    "--state-dir {work}/state",
    "/invocations",
    environment={"ONNXSERVE_HOME": "{work}/home", "MLFLOW_DISABLE_TELEMETRY": "true"},
)
OURS_MODELS = replace(
    OURS,
    command="{python} -m mlflow_deploy_plugin.cli serve --spec {work}/spec.yaml -p {port} -w 1 "
    "--state-dir {work}/state",
    path="/v2/models/{name}/infer",
    is_v2=True,
)
MLSERVER_MODELS = replace(
    MLSERVER,
    name="MLServer + scikit-learn",
    path="/v2/models/{name}/infer",
    requirements=(
        "mlserver==1.7.1",
        "mlserver-sklearn==1.7.1",
        "scikit-learn==1.9.1",
        "pandas<3",
    ),
    shown=("mlserver", "scikit-learn"),
)
BENTOML_MODELS = replace(
    BENTOML,
    command=BENTOML.command.replace(":Classifier", ":Classifiers"),
    environment={**BENTOML.environment, "MODELS": "{work}"},
)
PERF_ANALYZER = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12")
"""Triton's client, which speaks V2. It is the last wheel of tritonclient whose program
runs with glibc 2.36 (Debian 12); it also needs Debian's libb64-0d.
"""
