"""Witnesses of audit trails: by other people, and with the answers of a test."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlflow_deploy_plugin.core.store.checkpoints import Signer, parse_checkpoint
from mlflow_deploy_plugin.core.store.database import utc_now
from tests.support.foreign_log import FOLDER, aics_tlog
from tests.support.services.listener import answering
from tests.support.waiting import answers, free_port, wait_until


@dataclass
class ForeignWitness:
    """aics-witness in a folder, as a process that can be stopped and started."""

    folder: str
    name: str = "witness.example/foreign"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None
    vkey: str = ""

    def __post_init__(self):
        aics_tlog()
        arguments = ("--name", self.name, "--listen", f"127.0.0.1:{self.port}")
        self.vkey = self.run("init", *arguments).strip()

    @property
    def setting(self):
        return f"http://127.0.0.1:{self.port}#{self.vkey}"

    def _command(self, name, *arguments):
        config = ("--config", f"{self.folder}/witness.json")
        return [sys.executable, "-m", "aics_witness", name, *config, *arguments]

    @property
    def _environment(self):
        return {**os.environ, "PYTHONPATH": str(FOLDER)}

    def run(self, name, *arguments):
        command = self._command(name, *arguments)
        return subprocess.check_output(command, env=self._environment, text=True)

    def accept(self, log):
        """Add the log with this key, and restart."""
        self.run("add-log", "--origin", log.partition("+")[0], "--vkey", log)
        self.stop()
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._command("serve"), env=self._environment, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: answers(f"http://127.0.0.1:{self.port}/healthz"))

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def sizes(self):
        """Return the sizes that the witness has cosigned, by the names of the logs."""
        logs = json.loads(self.run("status", "--json"))["logs"]
        return {log["origin"]: log["size"] for log in logs}


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
        return Signer(self.name, self.key.public_key(), Signer.WITNESS)

    @property
    def setting(self):
        return f"{self.url}/a/path/#{self.signer.text}"

    def cosignature(self, checkpoint):
        return f"— {self.signer.sign(checkpoint.body, self.key.sign, utc_now())}\n"

    def respond(self, request, body):
        old, _, rest = body.decode().partition("\n")
        checkpoint = parse_checkpoint(rest.partition("\n\n")[2] if rest[0] != "\n" else rest[1:])
        self.asked.append((int(old.removeprefix("old ")), checkpoint, utc_now()))
        if self.hangs:
            self.hangs.wait()
        with suppress(OSError):
            while self.drips:
                request.wfile.write(b"H")
                time.sleep(0.02)
        if request.path != "/a/path/add-checkpoint":
            return 404, "text/plain", ""
        known = self.sizes.get(checkpoint.origin)
        if known not in (None, self.asked[-1][0]):
            return 409, "text/x.tlog.size", f"{known}\n"
        return self.answer or (200, "text/plain", self.cosignature(checkpoint))


@contextmanager
def scripted_witness(name="witness.example/scripted"):
    witness = ScriptedWitness(name)
    with answering(witness.respond) as witness.url:
        yield witness
        if witness.hangs:
            witness.hangs.set()
