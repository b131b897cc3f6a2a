"""`onnxserve kserve`: the arguments of KServe's servers and the variables of MLServer
become the arguments of `onnxserve serve`.
"""

import json
import socket
import subprocess
import sys

import click
import mlflow
import mlflow.onnx
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.cli.serve import serve
from mlflow_deploy_plugin.contrib.mlserver import container
from mlflow_deploy_plugin.contrib.mlserver.folders import OF_SERVER
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from tests.support.kserve import inference_service, own_runtimes, predictor_pod
from tests.support.models import adder
from tests.support.refusals import refused
from tests.support.serving import Served
from tests.support.waiting import free_port

DEFAULT = {
    "model": "/mnt/models",
    "name": None,
    "host": None,
    "port": 8080,
    "metrics": "8082",
    "grpc": "8081",
    "workers": 1,
}
OF_KSERVE = {**DEFAULT, "name": "iris"}


@pytest.fixture
def called(monkeypatch):
    """Return a function that returns the parameters of `onnxserve serve` for arguments
    and variables of the command.
    """

    def read(arguments, environment):
        for name in (*OF_SERVER, "model_name", "model_uri", "models_dir"):
            # The command may set it; it is restored.
            monkeypatch.setenv(f"MLSERVER_{name.upper()}", "")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        options = dict(container.kserve.make_context("kserve", [*arguments]).params)
        del options["framework"]
        call = container.serve_arguments(**options)
        return serve.make_context("serve", call).params

    return read


def served(call):
    """Return the fields that are compared with `DEFAULT`."""
    fields = dict(pair.split("=", 1) for pair in call["config"])
    return {
        "model": call["model_uri"],
        "grpc": fields["server.grpc_port"],
        "metrics": fields["server.metrics_port"],
        **{name: call[name] for name in ("name", "host", "port", "workers")},
    }


@pytest.mark.parametrize(
    ("arguments", "environment", "changes"),
    [
        ([], {}, {}),
        (["--model_name=iris", "--http_port", "8090"], {}, {"name": "iris", "port": 8090}),
        (["--model_name=a", "--model_name=b"], {}, {"name": "b"}),
        (["--model_name=iris"], {"MLSERVER_MODEL_NAME": "other"}, {"name": "iris"}),
        ([], {"MLSERVER_MODEL_NAME": "iris"}, {"name": "iris"}),
        ([], {"MLSERVER_HTTP_PORT": "9080", "MLSERVER_HOST": "::"}, {"port": 9080, "host": "::"}),
        ([], {"MLSERVER_GRPC_PORT": "9000"}, {"grpc": "9000"}),
        (["--enable_grpc=false"], {}, {"grpc": ""}),
        ([], {"MLSERVER_METRICS_PORT": "8080"}, {"metrics": ""}),
        ([], {"MLSERVER_METRICS_PORT": "6000"}, {"metrics": "6000"}),
        ([], {"MLSERVER_MODEL_URI": "/models/a"}, {"model": "/models/a"}),
        ([], {"MLSERVER_MODELS_DIR": "/m"}, {"model": "/m"}),
        ([], {"MLSERVER_MODEL_URI": ""}, {}),
        ([], {"MLSERVER_PARALLEL_WORKERS": "0"}, {"workers": 1}),
        (["--workers=3"], {}, {"workers": 3}),
        (["--model_dir=--registry"], {}, {"model": "--registry"}),
        (["mlserver", "start", "/m"], {}, {"model": "/m"}),
        (["mlserver", "start"], {}, {}),
        (["mlserver", "start", "."], {"MLSERVER_MODEL_URI": "/x"}, {"model": "."}),
        (["--nthread=1", "--new", "x", "--log_config_file=/a", "--max_threads", "4"], {}, {}),
    ],
)
def test_mlserver_settings_become_arguments_of_serve(called, arguments, environment, changes):
    assert served(called(arguments, environment)) == {**DEFAULT, **changes}


def test_mlserver_settings_file_wins_over_variables(called, tmp_path):
    settings = {"http_port": 9090, "host": "::1", "parallel_workers": 2, "debug": False}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "grpc_port": None}))
    variables = {"MLSERVER_HTTP_PORT": "7070", "MLSERVER_GRPC_PORT": "9000"}
    changes = {"model": str(tmp_path), "port": 9090, "host": "::1", "workers": 2, "grpc": "9000"}
    arguments = ["mlserver", "start", str(tmp_path)]
    assert served(called(arguments, variables)) == {**DEFAULT, **changes}
    assert served(called([*arguments, "--http_port=1"], variables))["port"] == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "settings.json"),
        ('{"http_port": [8080]}', "MLSERVER_HTTP_PORT"),
        ('{"http_port": -1}', "MLSERVER_HTTP_PORT"),
    ],
)
def test_mlserver_settings_file_with_mistake_is_refused(called, tmp_path, text, named):
    (tmp_path / "settings.json").write_text(text)
    with refused(InvalidConfig, named):
        called(["mlserver", "start", str(tmp_path)], {})


def test_mlserver_settings_file_with_zero_byte_is_read(called, tmp_path):
    (tmp_path / "settings.json").write_text('{"host": "a\\u0000b"}')
    assert called(["mlserver", "start", str(tmp_path)], {})["host"] == "ab"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("kserve-mlserver", {"grpc": "9000"}),
        ("kserve-sklearnserver", {}),
        ("kserve-xgbserver", {}),
        ("kserve-lgbserver", {}),
        ("kserve-predictiveserver", {}),
    ],
)
def test_servingruntime_of_kserve_starts_with_another_image(called, name, changes):
    pod = predictor_pod(
        own_runtimes()[name], inference_service("iris", "sklearn"), {"emptyDir": {}}
    )
    (made,) = pod["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in made["env"]}
    assert served(called(made["args"], environment)) == {**OF_KSERVE, **changes}


@pytest.mark.parametrize(
    ("framework", "environment", "implementation"),
    [
        ("", {}, None),
        ("", {"MLSERVER_MODEL_IMPLEMENTATION": "<no value>"}, None),
        ("<no value>", {}, None),
        ("onnx", {}, "onnx"),
        ("xgboost", {}, "mlserver_xgboost.XGBoostModel"),
        (
            "xgboost",
            {"MLSERVER_MODEL_IMPLEMENTATION": "mlserver_mlflow.MLflowRuntime"},
            "mlserver_mlflow.MLflowRuntime",
        ),
    ],
)
def test_mlserver_class_follows_from_framework(framework, environment, implementation):
    variables = container.server_environment(framework, environment)
    assert variables.get("MLSERVER_MODEL_IMPLEMENTATION") == implementation


@pytest.mark.parametrize(
    ("environment", "consent", "code"),
    [
        ({}, None, None),
        ({"ALLOW_PICKLE": "true"}, "true", None),
        ({"ALLOW_PICKLE": "True"}, "true", None),
        ({"ALLOW_PICKLE": "false"}, None, "false"),
        ({"ALLOW_PICKLE": "maybe"}, None, "false"),
        ({"ALLOW_PICKLE": "false", MODEL_CODE: "true"}, None, "true"),
        ({"ALLOW_PICKLE": "true", MODEL_CODE: "false"}, "true", "false"),
        ({"ALLOW_PICKLE": "true", "ONNXSERVE_ALLOW_PICKLE": "false"}, "false", None),
    ],
)
def test_mlserver_pickles_need_consent(environment, consent, code):
    variables = {**environment, **container.server_environment("sklearn", environment)}
    assert variables.get("ONNXSERVE_ALLOW_PICKLE") == consent
    assert variables.get(MODEL_CODE) == code


def test_mlserver_names_and_own_fields_are_served(called):
    call = called(["-C", "server.api_keys=true"], {})
    fields = dict(pair.split("=", 1) for pair in call["config"])
    assert (fields["server.api_keys"], fields["server.v2_names"]) == ("true", "mlserver")


def test_mlserver_settings_without_meaning_are_named():
    lines = container.ignored(
        ["--nthread=1", "--new", "x"],
        {"MLSERVER_KAFKA_ENABLED": "true", "MLSERVER_HOST": "::", "MLSERVER_MODEL_VERSION": "1"},
    )
    named = [line.partition(": ")[2] for line in lines]
    assert named == ["--nthread, --new", "MLSERVER_KAFKA_ENABLED"]
    assert container.ignored(["mlserver", "start", "/m"], {"PATH": ""}) == []


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--http_port=0"], {}, "--http_port"),
        (["--http_port=http"], {}, "--http_port"),
        ([], {"MLSERVER_HTTP_PORT": "70000"}, "MLSERVER_HTTP_PORT"),
        ([], {"MLSERVER_PARALLEL_WORKERS": "-1"}, "MLSERVER_PARALLEL_WORKERS"),
        (["--enable_grpc=perhaps"], {}, "--enable_grpc"),
        (["--model_name=a/b"], {}, "a/b"),
        (["--model_name=" + "a" * 64], {}, "a" * 64),
        (["--model_dir=/nowhere/at-all"], {}, "/nowhere/at-all"),
        (["--model_name"], {}, "--model_name"),
    ],
)
def test_mlserver_mistake_is_one_line(arguments, environment, named, monkeypatch, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {}")
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    ports = {f"MLSERVER_{name}_PORT": str(free_port()) for name in ("HTTP", "GRPC", "METRICS")}
    for name, value in {**ports, "MLSERVER_MODEL_IMPLEMENTATION": "", **environment}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "model.onnx").touch()
    result = CliRunner().invoke(main, ["kserve", f"--model_dir={tmp_path}", *arguments])
    lines = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert result.exit_code == 1
    assert len(lines) == 1
    assert named in lines[0]
    assert "Traceback" not in result.output
    assert isinstance(result.exception, (SystemExit, click.ClickException))


@pytest.fixture
def kserve(tmp_path, monkeypatch, new_home):
    """Start the command with an MLflow folder, and return its server and ports. The
    server ends with the test.
    """
    mlflow.onnx.save_model(adder(1), str(tmp_path / "model"), pip_requirements=["onnxruntime"])
    ports = {name: free_port() for name in ("HTTP", "GRPC", "METRICS")}
    for name, port in ports.items():
        monkeypatch.setenv(f"MLSERVER_{name}_PORT", str(port))
    monkeypatch.setenv("MLSERVER_MODEL_NAME", "add")
    monkeypatch.setenv("MLSERVER_HOST", "127.0.0.1")
    monkeypatch.setenv("ONNXSERVE_PORT", "tcp://10.96.0.7:80")
    monkeypatch.setenv("ONNXSERVE_METRICS_NAMES", "mlserver")
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "kserve", "--nthread=1"]
    log = tmp_path / "log"
    state_dir = tmp_path / "home" / "serve" / f"add-{ports['HTTP']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "mlserver", "start", str(tmp_path / "model")],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    served = Served(process, state_dir, log)
    try:
        yield served.wait_ready(), ports
    finally:
        served.end()
        remove_metrics(state_dir)


def test_mlserver_variables_start_a_server(kserve):
    served, ports = kserve
    assert served.url == f"http://127.0.0.1:{ports['HTTP']}"
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.5]}
    answer = requests.post(
        f"{served.url}/v2/models/add/infer", json={"inputs": [tensor]}, timeout=30
    )
    assert answer.json()["outputs"][0]["data"] == [2.5]
    for port in (ports["HTTP"], ports["METRICS"]):
        page = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        assert 'model_infer_request_success_total{model="add",version="None"} 1.0' in page
    with socket.create_connection(("127.0.0.1", ports["GRPC"]), timeout=10):
        pass
    assert "--nthread" in served.log.read_text().splitlines()[0]
