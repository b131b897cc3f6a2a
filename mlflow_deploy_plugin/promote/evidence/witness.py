"""A witness of audit trails (https://c2sp.org/tlog-witness): it cosigns a checkpoint
only if its tree contains the tree of the log's last one, so a log that shows two people
two histories gets a cosignature for one of them.
"""

import asyncio
import hashlib
import logging
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from http.client import responses
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.core.statedir.files import read_or_make_secret, write_atomically
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.checkpoints import (
    Checkpoint,
    NoteSigner,
    decoded,
    parse_checkpoint,
    parse_signer,
    parse_size,
)
from mlflow_deploy_plugin.core.store.merkle import HASH_BYTES, Edge, is_consistent
from mlflow_deploy_plugin.serve.http.parser import CHUNKED, read_head
from mlflow_deploy_plugin.serve.http.responses import CONTINUE, RawResponse, serialize_response

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[!-*,-~]{1,255}")
_RESTORE = "restore the newest file, or use another --folder for a new witness"
_TEXT = "text/plain; charset=utf-8"
_FIRST_SECOND = datetime.fromtimestamp(1, UTC)  # A cosignature of 0 would have no time.
_MOST_HASHES = 63
_MOST_REFUSED = 100  # per log, which is the only one that can sign them
_MOST_CONNECTIONS = 256
_REQUEST_SECONDS = 30.0
_HEAD_BYTES = 16 * 1024
_BODY_BYTES = 64 * 1024


class _Identity(State):
    """A private key in hex, its name, and the logs that it has cosigned."""

    name: str
    key: str
    cosigned: tuple[str, ...] = ()


class Witness:
    """The key of a witness, and the last cosigned checkpoint of each log.

    Args:
        folder: the folder with the state, which one process at a time may use.
        name: the name of a new key; empty for the known one.
        logs: the keys of the logs as text; a key has the name of its log, the origin.

    Raises InvalidConfig if an argument or a file cannot be used, or if the last
    checkpoint of a log is lost, and NotInstalled.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        logs: Sequence[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError:
            raise NotInstalled("a witness needs cryptography: pip install cryptography") from None
        self._now = now
        self._folder = folder
        self._file = folder / "witness.json"
        if not (name or self._file.exists()) or (name and not _NAME.fullmatch(name)):
            raise InvalidConfig("--name: ASCII without spaces and +, such as witness.example/1")
        signers = [parse_signer(text, "--log") for text in logs]
        self._logs = {log.name: log for log in signers if log.kind != NoteSigner.WITNESS}
        if len(self._logs) < len(signers):
            raise InvalidConfig("--log: a key of a witness, or two keys with the same name")
        new = _Identity(name=name, key=os.urandom(32).hex())
        try:
            content = read_or_make_secret(self._file, new.model_dump_json().encode())
            self._identity = _Identity.model_validate_json(content)
            self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self._identity.key))
        except (OSError, ValueError):  # A ValidationError of pydantic is a ValueError.
            raise InvalidConfig(f"{self._file} has no key of a witness: {_RESTORE}") from None
        if name not in ("", self._identity.name):
            raise InvalidConfig(f"--name: the key in {folder} has the name {self._identity.name}")
        self.signer = NoteSigner(self._identity.name, self._key.public_key(), NoteSigner.WITNESS)
        self._last = {origin: self._read_last(origin) for origin in self._logs}

    def _read_last(self, origin: str) -> Checkpoint:
        """Return the last cosigned checkpoint, or an unsigned one of an empty tree.
        Raises InvalidConfig if it is lost: the key could cosign a second history.
        """
        path = self._folder / f"{_digest(origin)}.checkpoint"
        try:
            last = parse_checkpoint(path.read_bytes().decode())
            is_valid = last.origin == origin and self.signer.signed_at(last) is not None
        except FileNotFoundError:
            last = Checkpoint(origin, 0, Edge().root)
            is_valid = origin not in self._identity.cosigned
        except (OSError, ValueError):
            is_valid = False
        if not is_valid:
            raise InvalidConfig(f"{path} lacks the last cosigned checkpoint: {_RESTORE}")
        return last

    def respond(self, method: str, path: str, body: bytes) -> RawResponse:
        try:
            if (method, path) == ("POST", "/add-checkpoint"):
                return self._add_checkpoint(body)
        except OSError as error:
            _log.error("the folder of the witness cannot be written: %s", error)
            return _refusal(503, "the witness cannot store the checkpoint; try again later")
        for origin, last in self._last.items():
            if (method, path) == ("GET", f"/{_digest(origin)}/checkpoint") and last.signatures:
                return RawResponse(200, last.text.encode(), _TEXT)
        return _refusal(404, "there is no such path, or no cosigned checkpoint")

    def _add_checkpoint(self, body: bytes) -> RawResponse:
        try:
            old, proof, checkpoint = parse_request(body)
        except ValueError:
            return _refusal(400, "an old size, a consistency proof and a checkpoint are expected")
        log = self._logs.get(checkpoint.origin)
        if log is None:
            return _refusal(404, "this witness does not know the log")
        if log.signed_at(checkpoint) is None:
            return _refusal(403, "the log has not signed the checkpoint")
        if old > checkpoint.size:
            return _refusal(400, "the old size is larger than the size of the checkpoint")
        each = [replace(checkpoint, signatures=(line,)) for line in checkpoint.signatures]
        checkpoint = next(one for one in each if log.signed_at(one))
        last = self._last[log.name]
        is_fork = checkpoint.size == last.size and checkpoint.root != last.root
        is_next = is_consistent(last.size, last.root, checkpoint.size, checkpoint.root, proof)
        if is_fork or (old == last.size < checkpoint.size and not is_next):
            self._keep_refused(checkpoint, last)
        if old != last.size:
            return RawResponse(409, f"{last.size}\n".encode(), "text/x.tlog.size")
        if is_fork or not is_next:
            return _refusal(422, "the checkpoint is not consistent with the last cosigned one")
        now = self._now()
        if now < (self.signer.signed_at(last) or _FIRST_SECOND):
            _log.error("the clock is before the last cosignature of %s: set the clock", log.name)
            return _refusal(503, "the clock of the witness went back; try again later")
        line = self.signer.sign(checkpoint.body, self._key.sign, now)
        self._store(checkpoint.with_signatures(line))
        return RawResponse(200, f"— {line}\n".encode(), _TEXT)

    def _store(self, cosigned: Checkpoint) -> None:
        """Bring the checkpoint to the disk before its cosignature leaves."""
        origin = cosigned.origin
        last = self._last[origin]
        # A repetition in the same second writes nothing. ECDSA signs it differently.
        if (cosigned.body, cosigned.signatures[-1:]) == (last.body, last.signatures[-1:]):
            return
        path = self._folder / f"{_digest(origin)}.checkpoint"
        write_atomically(path, cosigned.text.encode(), is_durable=True)
        if origin not in self._identity.cosigned:
            known = (*self._identity.cosigned, origin)
            identity = self._identity.model_copy(update={"cosigned": known})
            content = identity.model_dump_json().encode()
            write_atomically(self._file, content, is_durable=True, mode=0o600)
            self._identity = identity
        self._last[origin] = cosigned

    def _keep_refused(self, refused: Checkpoint, last: Checkpoint) -> None:
        """Keep a checkpoint that the log has signed, with the last cosigned one. Of the
        same size, they prove two histories; for another size, a stranger may have sent
        a wrong proof, so the places are counted separately.
        """
        kind = "fork" if refused.size == last.size else "unproven"
        folder = self._folder / "refused" / _digest(refused.origin)
        path = folder / f"{kind}-{last.size}-{refused.size}-{refused.root.hex()}"
        if path.exists() or len([*folder.glob(f"{kind}-*")]) >= _MOST_REFUSED:
            return
        text = "%s has signed size %d, not proven to be consistent with the cosigned size %d: %s"
        _log.warning(text, refused.origin, refused.size, last.size, path)
        with suppress(OSError):  # The checkpoint is refused on a full disk as well.
            write_atomically(path, f"{refused.text}\n{last.text}".encode(), is_durable=True)


def _digest(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()


def _refusal(status: int, reason: str) -> RawResponse:
    return RawResponse(status, f"{reason}\n".encode(), _TEXT)


def parse_request(body: bytes) -> tuple[int, list[bytes], Checkpoint]:
    """Return the old size, the proof and the checkpoint. Raises ValueError."""
    head, _, note = body.decode().partition("\n\n")
    first, *lines = head.split("\n")
    word, size = first.split(" ")
    proof = [decoded(line) for line in lines]
    if word != "old" or len(proof) > _MOST_HASHES or {*map(len, proof)} - {HASH_BYTES}:
        raise ValueError(first)
    return parse_size(size), proof, parse_checkpoint(note)


async def serve(witness: Witness, host: str, port: int, started: Callable[[], None]) -> None:
    """Answer requests, one after the other, until SIGTERM or SIGINT, and call `started`
    when clients can connect. Raises InvalidConfig if the port cannot be used.
    """
    clients: dict[asyncio.WriteTransport, None] = {}  # the one that waits for longest first

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.transport
        client.set_write_buffer_limits(0)  # `drain` then waits until the response is sent.
        if len(clients) >= _MOST_CONNECTIONS:
            longest = next(iter(clients))
            del clients[longest]
            longest.abort()
        # The client is gone or too slow, or the witness ends.
        with suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            keep_alive = True
            while keep_alive:
                clients[client] = clients.pop(client, None)
                async with asyncio.timeout(_REQUEST_SECONDS):
                    keep_alive = await _answer(witness, reader, writer)
        clients.pop(client, None)
        client.abort()

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await asyncio.start_server(answer_all, host, port, limit=_HEAD_BYTES)
    except OSError as error:
        raise InvalidConfig(f"--host {host} --port {port} cannot be used: {error}") from None
    started()
    await ended.wait()


async def _answer(
    witness: Witness, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Answer one request, and return True if another one may follow."""
    data = await reader.readuntil(b"\r\n\r\n")
    keep_alive = False
    try:
        head = read_head(data[:-4])
        if head.length == CHUNKED:
            response = _refusal(411, "the Content-Length is missing")
        elif head.length > _BODY_BYTES:
            response = _refusal(413, f"the body is longer than {_BODY_BYTES} bytes")
        else:
            if head.expects_continue:
                writer.write(CONTINUE)
            body = await reader.readexactly(head.length)
            response = witness.respond(head.method, head.path, body)
            keep_alive = head.keep_alive
    except OnnxserveError as error:
        response = _refusal(error.http_status, responses[error.http_status])
    with_body = not data.startswith(b"HEAD ")
    writer.write(serialize_response(response, keep_alive, with_body))
    await writer.drain()
    if not keep_alive:
        writer.write_eof()
        while await reader.read(_HEAD_BYTES):  # A client that still sends would see no answer.
            pass
    return keep_alive
