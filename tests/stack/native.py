"""docker/compose.yaml without Docker: each service runs with its own command,
environment and files, on its own address.

A service is a process of this machine that listens on 127.x.y.z instead of a container.
Ports are therefore unchanged. Three texts are replaced in commands, environments and
mounted files: a service's name before a port is replaced by its address, 0.0.0.0 by the
address of the service, and the path of a mount by the path of the file.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import yaml

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
PROGRAMS = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager", "nginx": "nginx"}
"""The entry points of images; Debian's packages have the same names."""


@dataclass
class NativeStack:
    """The started services of docker/compose.yaml, below `folder`.

    Attributes:
        outside: addresses of external services, such as S3's "minio:9000".
        changed: texts of mounted files that a test changes, such as the length of a
            window.
        settings: the variables of the file .env.
    """

    folder: Path
    outside: dict[str, str]
    changed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self):
        document = yaml.safe_load(COMPOSE.read_text())
        self.services = document["services"]
        self._secrets = {
            name: Path(secret["file"]).name for name, secret in document["secrets"].items()
        }
        network = random.SystemRandom().randrange(16, 250)
        self.addresses = {
            name: f"127.{network}.0.{number}" for number, name in enumerate(self.services, 10)
        }

    @property
    def secrets(self):
        return self.folder / "secrets"

    @property
    def door(self):
        """The address at which nginx answers predictions."""
        return f"https://{self.addresses['nginx']}:8443"

    def url(self, name, port, path=""):
        return f"http://{self.addresses[name]}:{port}{path}"

    @property
    def key(self):
        return (self.secrets / "shop_key").read_text()

    def predict(
        self,
        rows,
        key="",
        session=None,
        **headers,
    ):
        """Send a request through nginx, by default with the key `shop`."""
        return self.post("/invocations", {"inputs": rows}, key, session, **headers)

    def post(
        self,
        path,
        document,
        key="",
        session=None,
        **headers,
    ):
        http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        http_headers["Authorization"] = f"Bearer {key or self.key}"
        ask = (session or requests).post
        certificate = str(self.secrets / "tls.crt")
        return ask(
            self.door + path, json=document, headers=http_headers, verify=certificate, timeout=30
        )

    def log(self, name):
        return self.folder / f"{name}.log"

    def start(self, name):
        """Start a service, even if it ran before."""
        command, environment = self._prepare(name, self._command(name))
        with self.log(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=output,
                cwd=self.folder / name,
                start_new_session=True,
            )
        return self.processes[name]

    def execute(self, name, *command):
        """Run `docker compose exec NAME COMMAND`, and return its output, including
        stderr.
        """
        prepared, environment = self._prepare(name, self._program(list(command)))
        output = subprocess.PIPE, subprocess.STDOUT
        return subprocess.run(
            prepared,
            env=environment,
            stdout=output[0],
            stderr=output[1],
            text=True,
            timeout=120,
            check=False,
        ).stdout

    def _prepare(self, name, command):
        """Return the command and the environment of a process of a service, and write
        its files.
        """
        home = self.folder / name
        home.mkdir(exist_ok=True)
        mounts = self._mounts(name, home)
        declared = self.services[name].get("environment", {})
        environment = {
            key: self._native(str(value), name, mounts) for key, value in declared.items()
        }
        names = ("AWS_", "ONNXSERVE_", "MLFLOW_T")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(names)}
        return [self._native(part, name, mounts) for part in command], {**inherited, **environment}

    def mounted(self, name, path):
        """Return the file on this machine that a service reads at `path`."""
        return self.folder / name / path.strip("/")

    def run(self, name, seconds=180):
        """Run a service that ends by itself."""
        assert self.start(name).wait(seconds) == 0, self.log(name).read_text()[-4000:]

    def wait_for(self, name, condition, seconds=120):
        process = self.processes[name]
        wait_until(
            lambda: process.poll() is not None or condition(),
            seconds,
            f"{name}: {self.log(name).read_text()[-3000:]}",
        )
        assert process.poll() is None, self.log(name).read_text()[-4000:]

    def kill(self, name, number=signal.SIGKILL):
        """Signal every process of a service, and wait for its first process."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait(60)

    def end(self):
        """End the processes in reverse order, and kill a process
        that exceeds its time.
        """
        for name in reversed(list(self.processes)):
            process = self.processes[name]
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _set(self, text):
        """Return a text of compose.yaml with its variables replaced."""
        return re.sub(
            r"\$\{(\w+):-([^}]*)\}", lambda found: self.settings.get(found[1], found[2]), text
        )

    def _command(self, name):
        service = self.services[name]
        command = [self._set(part) for part in service.get("command", [])]
        image = re.split(r"[/:]", service["image"])
        for part, program in PROGRAMS.items():
            if any(piece.startswith(part) for piece in image):
                command = [program, *command]
        if name == "nginx":
            # like the image's own command
            command += ["-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]
        return self._program(command)

    def _program(self, command):
        ours = {
            "python": [sys.executable],
            "onnxserve": [sys.executable, "-m", "mlflow_deploy_plugin.cli"],
            "mlflow": [str(Path(sys.executable).with_name("mlflow"))],
        }
        if command[0] not in ours and shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed: Debian's package of that name has it")
        return [*ours.get(command[0], command[:1]), *command[1:]]

    def _mounts(self, name, home):
        """Return the path on this machine for each path in the container; mounted files
        are rendered to `home`.
        """
        service = self.services[name]
        mounts = {}
        sources = {}
        for secret in service.get("secrets", ()):
            source, target = (
                (secret["source"], secret["target"])
                if isinstance(secret, dict)
                else (secret, f"/run/secrets/{secret}")
            )
            sources[target] = self.secrets / self._secrets[source]
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                sources[target] = (COMPOSE.parent / source).resolve()
            else:
                mounts[target] = str(home / source)
                (home / source).mkdir(exist_ok=True)
        mounts.setdefault("/var/lib/onnxserve", str(home / "home"))
        mounts["/tmp"] = f"{home}/tmp"
        (home / "tmp").mkdir(exist_ok=True)
        for target, source in sources.items():
            if source.is_file():
                place = (
                    Path(self._native(target, name, mounts))
                    if target.startswith("/var/lib")
                    else home / target.strip("/")
                )
                place.parent.mkdir(parents=True, exist_ok=True)
                mounts[target] = str(place)
            else:
                mounts[target] = str(source)
        for target, source in sources.items():
            if source.is_file():
                Path(mounts[target]).write_text(self._native(source.read_text(), name, mounts))
        return mounts

    def _native(self, text, name, mounts):
        text = self._set(text)
        for old, new in self.changed.items():
            text = text.replace(old, new)
        for old, new in self.outside.items():
            text = text.replace(old, new)
        names = "|".join(sorted(self.addresses, key=len, reverse=True))
        text = re.sub(rf"(?<![\w.-])({names})(?=:\d)", lambda found: self.addresses[found[1]], text)
        text = re.sub(
            rf"(?m)^host=({names})$", lambda found: f"host={self.addresses[found[1]]}", text
        )
        text = text.replace("0.0.0.0", self.addresses[name])
        paths = "|".join(re.escape(target) for target in sorted(mounts, key=len, reverse=True))
        return re.sub(rf"(?<![\w./-])({paths})(?![\w-])", lambda found: mounts[found[1]], text)
