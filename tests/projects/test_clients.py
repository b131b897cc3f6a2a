"""The programs of projects/clients call a real server, with the commands of
projects/clients/README.md.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import onnxserve
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from tests.support.guides import ROOT, Reader, blocks
from tests.support.keys import write_keys
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, variant, want
from tests.support.waiting import free_port, wait_until

CLIENTS = ROOT / "projects" / "clients"
KEY = "onnxserve_of_the_shop"
METRICS_KEY = "onnxserve_of_prometheus"
JARS = Path("/usr/share/java")
GO_PACKAGES = Path("/usr/share/gocode")


@dataclass(frozen=True)
class Language:
    """A section of the guide.

    Attributes:
        folder: the folder of the program.
        tools: the programs and the files that the commands need, in addition to OpenAPI
            Generator.
    """

    heading: str
    folder: str
    tools: tuple[str, ...]


_JARS = (
    "grpc-api",
    "grpc-context",
    "grpc-core",
    "grpc-netty",
    "grpc-protobuf",
    "grpc-protobuf-lite",
    "grpc-stub",
    "netty-buffer",
    "netty-codec",
    "netty-codec-http",
    "netty-codec-http2",
    "netty-common",
    "netty-handler",
    "netty-resolver",
    "netty-transport",
    "perfmark-api",
    "protobuf",
    "guava",
    "jakarta-annotation-api",
    "geronimo-annotation-1.3-spec",
)
_GO_MODULES = (
    "google.golang.org/grpc",
    "google.golang.org/protobuf",
    "github.com/hashicorp/go-retryablehttp",
)
LANGUAGES = (
    Language(
        "Java",
        "java",
        ("javac", "protoc", "grpc_java_plugin", *(f"{JARS / name}.jar" for name in _JARS)),
    ),
    Language(
        "Go",
        "go",
        (
            "go",
            "protoc",
            "protoc-gen-go",
            "protoc-gen-go-grpc",
            *(f"{GO_PACKAGES}/src/{name}" for name in _GO_MODULES),
        ),
    ),
    Language("JavaScript", "javascript", ("npm",)),
    Language("R", "r", ("Rscript", "/usr/lib/R/site-library/httr2")),
)


def guide_section(heading):
    page = (ROOT / "projects" / "clients" / "README.md").read_text()
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    return str(text)


def test_client_proto_matches_server():
    client, server = (
        path.read_text()
        for path in (
            CLIENTS / "inference.proto",
            ROOT / "mlflow_deploy_plugin" / "serve" / "grpc" / "inference.proto",
        )
    )
    assert client[client.index("message ") :] in server
    service = (ROOT / "mlflow_deploy_plugin" / "serve" / "grpc" / "service.py").read_text()
    methods = re.findall(r"rpc (\w+)", client)
    assert "ModelInfer" in methods
    assert [method for method in methods if method not in service] == []


ROWS = pd.DataFrame({"carrier": ["UA", "AA"], "distance": [1400.0, 300.0], "hour": [22, 9]})


@pytest.fixture(scope="module")
def model():
    """The model of docs/protocols.md."""
    chance = np.random.default_rng(0)
    numbers = {"distance": chance.uniform(100, 3000, 500), "hour": chance.integers(5, 23, 500)}
    rows = pd.DataFrame({"carrier": ["UA", "AA"] * 250, **numbers})
    late = rows["hour"] > chance.uniform(8, 26, 500)
    columns = make_column_transformer(
        (OneHotEncoder(), ["carrier"]), (StandardScaler(), ["distance", "hour"])
    )
    return make_pipeline(columns, LogisticRegression()).fit(rows, late)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "three-columns"
    onnxserve.save_model(model, path, input_example=ROWS)
    return path


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A folder with the program openapi-generator-cli and its library, from PATH or
    from PyPI.
    """
    if not shutil.which("java"):
        pytest.skip("OpenAPI Generator needs java")
    environment = tmp_path_factory.mktemp("generator")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=200)
    install = [
        f"{environment}/bin/pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "openapi-generator-cli",
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, timeout=200)
    if installed.returncode != 0:
        pytest.skip(f"openapi-generator-cli cannot be installed: {installed.stderr[-200:]}")
    return environment


def of_model(folder):
    return {"flights": {"v": variant(folder, model="three-columns")}}


def workplace(language, folder, generator):
    """Return a copy of the program's folder, next to the .proto file, and the variables
    of a shell that can build it.

    The libraries are Debian's packages, because the tests cannot download from Maven
    Central or the Go proxy.
    """
    home = (
        folder / "go" / "src" / "flights" if language.folder == "go" else folder / language.folder
    )
    shutil.copytree(CLIENTS / language.folder, home)
    shutil.copy(CLIENTS / "inference.proto", home.parent)
    variables = {**os.environ, "PATH": f"{generator / 'bin'}:{os.environ['PATH']}", "KEY": KEY}
    if language.folder == "java":
        (home / "lib").mkdir()
        for jar in (
            *(JARS / f"{name}.jar" for name in _JARS),
            *generator.rglob("openapi-generator.jar"),
        ):
            (home / "lib" / jar.name).symlink_to(jar)
    if language.folder == "go":
        variables |= {
            "GO111MODULE": "off",
            "GOPATH": f"{folder / 'go'}:{GO_PACKAGES}",
            "GOFLAGS": "",
        }
    return home, variables


def with_keys(state_dir):
    state_dir.mkdir()
    write_keys(
        state_dir,
        {
            METRICS_KEY: KeyEntry(name="prometheus", scopes=("read",)),
            KEY: KeyEntry(name="shop", scopes=("infer", "read"), endpoints=("flights",)),
        },
    )
    return state_dir


def build(home, variables, commands, state_dir, folder):
    """Run the commands of the smallest example and then the language's commands, while
    the model is served.
    """
    fetch, curl = blocks("sh", guide_section("The smallest example"))
    exports = fetch.partition("\n")[0]
    with gunicorn(state_dir, of_model(folder), ServerSpec(api_keys=True)) as running:
        reader = Reader(home, variables, {"8123": running.url.rpartition(":")[2]})
        reader.run(fetch)
        assert reader.run(f"{exports}\n{curl}").replace(" ", "") == '{"predictions":[true]}'
        for block in commands:
            reader.run(block)


def output_while_the_model_is_loaded(home, variables, command, state_dir, folder):
    """Return the output of a program whose first request is answered with 503, because
    the model has no files yet.
    """
    grpc_port = free_port()
    spec = ServerSpec(api_keys=True, grpc_port=grpc_port)
    with gunicorn(state_dir, of_model(folder / "missing"), spec, awaited=503) as running:
        addresses = {"URL": running.url, "GRPC": f"localhost:{grpc_port}"}
        program = subprocess.Popen(
            ["bash", "-c", command], cwd=home, env=variables | addresses,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            wait_until(
                lambda: count_of_503(running.url) or program.poll() is not None,
                60,
                "a first request",
            )
            want(state_dir, 2, of_model(folder))
            output = program.communicate(timeout=60)[0]
        finally:
            program.kill()
    assert program.returncode == 0, output
    return output


def count_of_503(url):
    page = requests.get(
        f"{url}/metrics", headers={"Authorization": f"Bearer {METRICS_KEY}"}, timeout=30
    ).text
    return sum(
        map(
            float,
            re.findall(r'^onnxserve_requests_total\{.*status="503".*\} (\S+)$', page, re.MULTILINE),
        )
    )


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.heading)
def test_client_program_predicts_and_reports_errors(language, model, folder, generator, tmp_path):
    missing = [
        tool for tool in language.tools if not shutil.which(tool) and not Path(tool).exists()
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    *commands, run = blocks("sh", guide_section(language.heading))
    home, variables = workplace(language, tmp_path, generator)
    build(home, variables, commands, with_keys(tmp_path / "built"), folder)
    output = output_while_the_model_is_loaded(
        home, variables, run, with_keys(tmp_path / "asked"), folder
    )
    lines = re.findall(
        r"^(REST|REST error|gRPC|gRPC error|V2): (.*?)(?=\n\w+(?: error)?: |\Z)",
        output,
        re.M | re.S,
    )
    printed = dict(lines)
    assert re.findall("true|false", printed["REST"].lower()) == ["true", "false"]
    assert mentions(printed["REST"], "version", "1")
    assert mentions(printed["REST error"], "400", "hour", "missing")
    probabilities = re.findall(r"0\.\d+", printed["V2" if language.heading == "R" else "gRPC"])
    np.testing.assert_allclose(
        [*map(float, probabilities)], model.predict_proba(ROWS).ravel(), rtol=1e-5
    )
    if language.heading != "R":
        assert mentions(
            printed["gRPC error"].replace("InvalidArgument", "INVALID_ARGUMENT"),
            "INVALID_ARGUMENT",
            "hour",
        )
