"""The agent fetches API keys and an issuer's keys, and keeps them while their source is
down.
"""

import json
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.statedir.files import JWKS, KEYS, read_state
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, ValidKeys
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.serve.agent.keys import api_key_fetcher, issuer_key_fetcher
from tests.support.waiting import wait_until


@pytest.fixture
def start():
    """Start a fetcher that polls all the time, until the end of the test."""
    stop = threading.Event()
    started = []

    def start(new_fetcher, *arguments):
        fetcher = new_fetcher(*arguments, seconds=0.02, stop=stop)
        started.append(fetcher)
        fetcher.start()
        return fetcher

    yield start
    stop.set()
    for fetcher in started:
        fetcher.join()


def test_keys_stay_while_the_store_is_down(start, tmp_path, monkeypatch, caplog):
    url = f"sqlite:///{tmp_path}/store.db"
    stored = ApiKeys(open_store(url))
    stored.create("shop", ["infer"], ["flights"])

    def fetched():
        read = read_state(tmp_path / KEYS, ValidKeys) or ValidKeys()
        return {key.name: key.endpoints for key in read.keys.values()}

    fetcher = start(api_key_fetcher, tmp_path, url)
    wait_until(lambda: fetched() == {"shop": ("flights",)}, what="the first key")
    stored.create("ops", ["admin"])
    stored.revoke("shop")
    wait_until(lambda: fetched() == {"ops": ()}, what="the change")
    monkeypatch.setattr(ApiKeys, "valid_entries", Mock(side_effect=OnnxserveError("it is down")))
    wait_until(lambda: "it is down" in caplog.text, what="the failure")
    assert fetched() == {"ops": ()}
    assert fetcher.is_alive()
    (tmp_path / KEYS).unlink()
    assert fetcher.assert_file()
    assert fetched() == {"ops": ()}


def test_mounted_file_replaces_the_store(start, tmp_path, caplog):
    mounted = tmp_path / "mounted.json"

    def is_fetched(keys):
        return read_state(tmp_path / KEYS, ValidKeys) == keys

    fetcher = start(api_key_fetcher, tmp_path, mounted)
    for name in ("shop", "ops"):
        written_at = time.time()
        keys = ValidKeys(keys={"0" * 64: KeyEntry(name=name, scopes=("infer",))})
        mounted.write_text(keys.model_dump_json())
        wait_until(partial(is_fetched, keys), what=name)
        caplog.clear()
        mounted.write_text("{")
        wait_until(lambda: f"{mounted} is not" in caplog.text, what="the refusal")
        last_fetched_at = fetcher.fetched_at
        mounted.unlink()
        wait_until(lambda: "No such file" in caplog.text, what="another reason")
        assert is_fetched(keys)
        assert written_at <= fetcher.fetched_at == last_fetched_at


class _Recorder(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_):
        self.asked.append(self.path)


def write_keys(folder, *names):
    keys = [
        {
            **ECAlgorithm.to_jwk(generate_private_key(SECP256R1()).public_key(), as_dict=True),
            "kid": name,
        }
        for name in names
    ]
    (folder / "keys").write_text(json.dumps({"keys": keys}))


@pytest.fixture
def issuer(tmp_path):
    """Serve a folder as an issuer. Return its address and the folder."""
    folder = tmp_path / "issuer"
    (folder / ".well-known").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Recorder, directory=str(folder)))
    url = f"http://127.0.0.1:{server.server_port}"
    document = {"issuer": f"{url}/", "jwks_uri": f"{url}/keys"}
    (folder / ".well-known" / "openid-configuration").write_text(json.dumps(document))
    write_keys(folder, "monday")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield url, folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_issuer_keys_are_followed_and_kept(start, issuer, tmp_path):
    url, folder = issuer

    def fetched():
        file = tmp_path / JWKS
        if file.is_file():
            return [key["kid"] for key in json.loads(file.read_text())["keys"]]
        return []

    fetcher = start(issuer_key_fetcher, tmp_path, f"{url}/")
    wait_until(lambda: fetched() == ["monday"], what="the first key")
    write_keys(folder, "monday", "tuesday")
    wait_until(lambda: fetched() == ["monday", "tuesday"], what="the second key")
    for broken in ("no JSON", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct"}]}', None):
        if broken is None:
            (folder / "keys").unlink()
        else:
            (folder / "keys").write_text(broken)
        _Recorder.asked.clear()
        wait_until(lambda: len(_Recorder.asked) > 4, what="two fetches")
        assert fetched() == ["monday", "tuesday"]
    assert fetcher.is_alive()


def test_oversized_issuer_keys_are_refused(start, issuer, tmp_path, caplog):
    url, folder = issuer
    with (folder / "keys").open("a") as keys:
        keys.write(" " * 1_000_000)  # JSON may consist of white space.
    start(issuer_key_fetcher, tmp_path, f"{url}/")
    wait_until(lambda: "1,000,000 bytes" in caplog.text, what="the reason")
    assert not (tmp_path / JWKS).exists()


@pytest.mark.parametrize(
    "document", ['{"issuer": "https://other", "jwks_uri": "URL/keys"}', "[]", '{"issuer": "URL"}']
)
def test_document_of_another_issuer_is_refused(start, issuer, tmp_path, caplog, document):
    """Tokens of the configured issuer would be rejected, because they would name the
    other issuer.
    """
    url, folder = issuer
    (folder / ".well-known" / "openid-configuration").write_text(document.replace("URL", url))
    start(issuer_key_fetcher, tmp_path, url)
    wait_until(lambda: "document of server.jwt_issuer" in caplog.text, what="the reason")
    assert not (tmp_path / JWKS).exists()
