"""Witnesses of audit trails: by other people, and with the answers of a test."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlflow_deploy_plugin.core.store.checkpoints import NoteSigner, parse_checkpoint
from mlflow_deploy_plugin.core.store.database import utc_now
from tests.support.services.listener import answering
from tests.support.tlog import FOLDER
from tests.support.waiting import free_port, wait_until

PYTHON = (sys.executable, "-m")
PATHS = (os.environ.get("PYTHONPATH"), str(FOLDER))
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS))}


@dataclass
class RunningWitness:
    """A witness in a folder as a process."""

    folder: Path
    name: str = "witness.example/1"
    port: int = field(default_factory=free_port)
    process: Any = None
    vkey: str = ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def setting(self):
        return f"{self.url}#{self.vkey}"

    def run(self, *command, stderr=subprocess.DEVNULL):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT
        )

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


@dataclass
class OwnWitness(RunningWitness):
    def accept(self, log):
        """Start with the log of this key, and wait until it listens or has failed."""
        options = ["--folder", self.folder, "--name", self.name, "--port", str(self.port)]
        command = [*PYTHON, "mlflow_deploy_plugin.cli", "audit", "witness", *options]
        self.run(*command, "--log", log, stderr=subprocess.PIPE)
        self.vkey = self.process.stdout.readline().strip()


@dataclass
class ForeignWitness(RunningWitness):
    """aics-witness."""

    def __post_init__(self):
        listen = ("--name", self.name, "--listen", f"127.0.0.1:{self.port}")
        self.vkey = self._call("init", *listen).strip()

    def _command(self, name):
        return [*PYTHON, "aics_witness", name, "--config", self.folder / "witness.json"]

    def _call(self, name, *options):
        command = [*self._command(name), *options]
        return subprocess.check_output(command, env=ENVIRONMENT, text=True)

    def start(self):
        """Start and wait until it listens."""
        self.run(*self._command("serve"))
        wait_until(lambda: is_open(self.port))

    def accept(self, log):
        """Add the log with this key, and restart."""
        self._call("add-log", "--origin", log.partition("+")[0], "--vkey", log)
        self.close()
        self.start()


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class ScriptedWitness:
    """A witness that cosigns everything, unless `answer` is set.

    Attributes:
        answer: the status, the type, the body and further headers of all answers.
        hangs: answers wait for this event.
        drips: answers are endless, a byte at a time.
        asked: the old size, the checkpoint and the time of each request.
        sizes: the sizes that it remembers, by the names of the logs; other sizes in a
            request are answered with 409.
    """

    name: str
    url: str = ""
    answer: tuple | None = None
    asked: list = field(default_factory=list)
    sizes: dict = field(default_factory=dict)
    hangs: threading.Event | None = None
    drips: bool = False
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def signer(self):
        return NoteSigner(self.name, self.key.public_key(), NoteSigner.WITNESS)

    @property
    def setting(self):
        return f"{self.url}/a/path/#{self.signer.text}"

    def cosignature(self, checkpoint):
        return f"— {self.signer.sign(checkpoint.body, self.key.sign, utc_now())}\n"

    def respond(self, request, body):
        head, _, note = body.decode().partition("\n\n")
        old = int(head.split()[1])
        checkpoint = parse_checkpoint(note)
        self.asked.append((old, checkpoint, utc_now()))
        if self.hangs:
            self.hangs.wait()
        with suppress(OSError):
            while self.drips:
                request.wfile.write(b"H")
                time.sleep(0.02)
        if request.path != "/a/path/add-checkpoint":
            return 404, "text/plain", ""
        known = self.sizes.get(checkpoint.origin)
        if known not in (None, old):
            return 409, "text/x.tlog.size", f"{known}\n"
        return self.answer or (200, "text/plain", self.cosignature(checkpoint))


@contextmanager
def scripted_witness(name="witness.example/scripted"):
    witness = ScriptedWitness(name)
    with answering(witness.respond) as witness.url:
        yield witness
        if witness.hangs:
            witness.hangs.set()
