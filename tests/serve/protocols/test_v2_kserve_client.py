"""The KServe client (REST V2 and V1, gRPC) with a complete server. Its environment is
kept for the next run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.refusals import mentions
from tests.support.serving import servers_below
from tests.support.waiting import free_port

KSERVE = "0.21.0"
ENVIRONMENT = (
    Path("~/.cache/onnxserve-tests").expanduser() / f"kserve-{KSERVE}-py{sys.version_info[1]}"
)
PROGRAM = Path(__file__).parents[2] / "support" / "services" / "kserve_client.py"


@pytest.fixture(scope="module")
def python():
    """Return the interpreter of an environment with kserve, which uv creates in seconds
    from cached packages.
    """
    interpreter = ENVIRONMENT / "bin" / "python"
    if not interpreter.exists():
        making = ENVIRONMENT.with_name(f".{ENVIRONMENT.name}-{os.getpid()}")
        making.parent.mkdir(parents=True, exist_ok=True)
        uv = [sys.executable, "-m", "uv"]
        commands = (
            [*uv, "venv", "-q", "--relocatable", "--python", sys.executable, str(making)],
            [
                *uv,
                "pip",
                "install",
                "-q",
                "--python",
                str(making / "bin" / "python"),
                f"kserve=={KSERVE}",
            ],
        )
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
            making.rename(ENVIRONMENT)
        except (subprocess.SubprocessError, OSError) as error:
            if not interpreter.exists():  # Another run may have created it.
                pytest.skip(
                    f"kserve {KSERVE} cannot be installed: "
                    f"{getattr(error, 'stderr', None) or error}"
                )
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return interpreter


@pytest.fixture(scope="module")
def said(python, tmp_path_factory, model_folders):
    """Return the results of the client, by protocol and call."""
    port = free_port()
    arguments = [str(model_folders["tensor"]), "--name", "images", "-C", f"server.grpc_port={port}"]
    with servers_below(tmp_path_factory.mktemp("kserve")) as start:
        url = start(*arguments).wait_ready().url
        command = [str(python), str(PROGRAM), url, f"127.0.0.1:{port}", "images"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        yield json.loads(result.stdout.splitlines()[-1])


IMAGES = np.arange(8.0).reshape(2, 2, 2)
OUTPUTS: dict[str, list[Any]] = {"doubled": (2 * IMAGES).tolist(), "total": [6.0, 22.0]}


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_the_client_finds_server_and_model_ready(said, protocol):
    assert {name: said[protocol][name] for name in ("live", "ready", "model ready")} == {
        "live": True,
        "ready": True,
        "model ready": True,
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("protocol", "form"), [("rest", "json"), ("rest", "binary"), ("grpc", "binary")]
)
def test_the_client_reads_the_answer(said, protocol, form):
    answer = said[protocol][form]
    assert answer["id"] == "mine"
    assert answer["model"] == "images"
    assert answer["outputs"] == OUTPUTS


def test_the_client_shows_our_message(said):
    assert mentions(said["rest"]["error"], "'nobody'", "'images'")


def test_the_first_protocol_is_understood_too(said):
    assert said["v1"] == {
        "live": True,
        "model ready": True,
        "predictions": [
            {"doubled": doubled, "total": total}
            for doubled, total in zip(OUTPUTS["doubled"], OUTPUTS["total"], strict=True)
        ],
    }
