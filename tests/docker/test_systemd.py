"""Rendered units, started by Debian's systemd as process 1 of a container, with the
server of the image.
"""

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.docker.conftest import BASE_IMAGE, Container, run_docker
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.long]
DOCKERFILE = """\
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends systemd curl openssl
COPY --from={image} /opt/onnxserve /opt/onnxserve
"""
RIGHTS = ["--cap-add", "SYS_ADMIN", "--cgroupns", "private"]
UNCONFINED = [f"--security-opt={one}=unconfined" for one in ("seccomp", "apparmor", "systempaths")]
PLACES = ["--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "-e", "container=docker"]
# otherwise services receive no credentials
SHARED = "mount --make-rshared / && exec /lib/systemd/systemd"
ROW = '{"inputs": [[1.0, 2.0]]}'


class Machine(Container):
    """A container whose process 1 is systemd."""

    def install(
        self,
        name: str,
        model: str,
        folder: Path,
        **config: str,
    ) -> str:
        """Copy the rendered files of an endpoint to their places, and return the unit's
        name.
        """
        fields = {key.replace("__", "."): value for key, value in config.items()}
        for path, text in FORMATS["systemd"](new_endpoint(name, model, fields), Place()).items():
            (folder / "file").write_text(text)
            self.run("mkdir", "-p", str(Path("/", path).parent))
            run_docker("cp", str(folder / "file"), f"{self.name}:/{path}")
        self.run("systemctl", "daemon-reload")
        return f"onnxserve-{name}"

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_docker("exec", self.name, "systemctl", *arguments, check=False)

    def shown(self, unit: str, what: str) -> str:
        return self.systemctl("show", "-P", what, unit).stdout.strip()

    def journal(self, unit: str, *options: str) -> list[dict[str, Any]]:
        lines = self.run(
            "journalctl",
            "-u",
            unit,
            "-o",
            "json",
            *options,
        ).splitlines()
        return [json.loads(line) for line in lines]

    def predicts(self, url: str, *options: str) -> bool:
        command = [
            "curl",
            "-sk",
            "-H",
            "Content-Type: application/json",
            "-d",
            ROW,
            *options,
            f"{url}/invocations",
        ]
        return "[[2.0,4.0]]" in run_docker("exec", self.name, *command, check=False).stdout


@pytest.fixture(scope="module")
def machine(
    image: str,
    model_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    context = tmp_path_factory.mktemp("systemd")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=BASE_IMAGE, image=image))
    tag = f"{image}-systemd"
    name = f"onnxserve-test-{uuid.uuid4().hex[:12]}"
    run_docker("build", "-q", "-t", tag, str(context))
    options = [*RIGHTS, *UNCONFINED, *PLACES, "-v", f"{model_folder}:/srv/model:ro"]
    try:
        begun = run_docker(
            "run",
            "-d",
            "--name",
            name,
            *options,
            tag,
            "sh",
            "-c",
            SHARED,
            check=False,
        )
        if begun.returncode:
            pytest.skip(
                "no container may have the rights of a systemd: "
                f"{begun.stderr.strip().splitlines()[-1]}",
            )
        made = Machine(name)
        try:
            wait_until(
                lambda: made.systemctl("is-system-running").stdout.strip() == "running",
                30,
                "systemd runs",
            )
        except AssertionError:
            pytest.skip(f"systemd does not run in a container here: {made.logs[-500:]}")
        yield made
    finally:
        run_docker("rm", "-f", "-v", name, check=False)
        run_docker("rmi", "-f", tag, check=False)


def test_a_unit_is_started_when_it_answers_restarted_when_it_is_killed_and_ends_in_order(
    machine: Machine,
    tmp_path: Path,
) -> None:
    unit = machine.install("flights", "/srv/model", tmp_path, capture__fraction="1")
    verified = run_docker("exec", machine.name, "systemd-analyze", "verify", unit + ".service")
    assert verified.stderr == ""
    assert machine.systemctl("enable", "--now", unit).returncode == 0
    assert machine.predicts("localhost:8080")  # at once
    first = machine.shown(unit, "MainPID")

    machine.systemctl("kill", "--kill-who=main", "--signal=KILL", unit)
    wait_until(lambda: machine.shown(unit, "ActiveState") == "active", 60, "it is restarted")
    assert machine.shown(unit, "MainPID") != first
    assert machine.predicts("localhost:8080")
    assert machine.systemctl("restart", unit).returncode == 0
    assert machine.predicts("localhost:8080")

    spool = f"/var/lib/{unit}/server/spool"
    log = f"/var/lib/{unit}/inference_log"
    assert machine.systemctl("stop", unit).returncode == 0
    assert machine.shown(unit, "Result") == "success"
    assert machine.shown(unit, "ExecMainStatus") == "0"
    assert (
        machine.run("sh", "-c", f"ls {spool}/ && find {log}/ -name '*.parquet' | wc -l").strip()
        == "3"
    )
    assert {
        (entry["PRIORITY"], entry["_UID"] == "0")
        for entry in machine.journal(unit, "-t", "onnxserve")
    } == {("6", False)}


def test_two_units_side_by_side_have_their_secrets_and_privileged_port(
    machine: Machine,
    tmp_path: Path,
) -> None:
    secrets = "/etc/onnxserve/secrets"
    made = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {secrets}/tls.key -out "
        f"{secrets}/tls.crt -subj /CN=a"
    )
    machine.run(
        "sh",
        "-ec",
        (
            f"mkdir -p {Path(secrets).parent}; umask 077; mkdir {secrets}; echo token > "
            f"{secrets}/token; {made}"
        ),
    )
    machine.run("sh", "-ec", "mkdir -p /home/ada; cp -r /srv/model /home/ada/; chmod 700 /home/ada")
    plain = machine.install("one", "/srv/model", tmp_path, server__port="8081")
    two = machine.install(
        "two",
        "/home/ada/model",
        tmp_path,
        server__port="443",
        server__host="0.0.0.0",
        server__insecure="true",
        server__certfile=f"{secrets}/tls.crt",
        server__keyfile=f"{secrets}/tls.key",
        container__secrets__MLFLOW_TRACKING_TOKEN=f"{secrets}/token",
    )
    assert machine.systemctl("start", plain, two).returncode == 0, machine.journal(two)
    assert machine.predicts("localhost:8081")
    assert machine.predicts("https://localhost")
    users = {machine.journal(unit, "-t", "onnxserve")[0]["_UID"] for unit in (plain, two)}
    assert len(users) == 2
    worker = machine.run(
        "sh",
        "-c",
        f"tr '\\0' '\\n' < /proc/{machine.shown(two, 'MainPID')}/environ",
    )
    assert "token\n" not in worker  # passed in a file
    assert machine.systemctl("stop", plain, two).returncode == 0


def test_a_unit_that_cannot_serve_says_so_and_is_tried_again_without_end(
    machine: Machine,
    tmp_path: Path,
) -> None:
    config = {
        "container__environment__MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "server__port": "8083",
    }
    unit = machine.install("away", "models:/flights/1", tmp_path, **config)
    begun = machine.systemctl("start", unit)
    assert (begun.returncode, "exited with error" in begun.stderr) == (1, True)
    messages = [entry["MESSAGE"] for entry in machine.journal(unit)]
    assert any(
        mentions(line, "model flights", "http://127.0.0.1:9", "connection refused")
        for line in messages
    )
    wait_until(lambda: int(machine.shown(unit, "NRestarts")) > 1, 60, "it is retried")
    assert machine.shown(unit, "StartLimitIntervalUSec") == "0"
    machine.systemctl("stop", unit)
