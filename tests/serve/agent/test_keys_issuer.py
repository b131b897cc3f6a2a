"""The agent fetches an issuer's keys, follows their rotation, and keeps them while the
issuer is down.
"""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm

from mlflow_deploy_plugin.core.statedir.files import JWKS
from mlflow_deploy_plugin.serve.agent.keys import issuer_key_fetcher
from tests.support.waiting import wait_until


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    url = f"http://127.0.0.1:{server.server_port}"
    document = {"issuer": f"{url}/", "jwks_uri": f"{url}/keys"}
    (folder / ".well-known" / "openid-configuration").write_text(json.dumps(document))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield url, folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_keys_are_fetched_followed_and_kept(issuer, tmp_path):
    url, folder = issuer
    write_keys(folder, "monday")

    def brought():
        file = tmp_path / JWKS
        if file.is_file():
            return [key["kid"] for key in json.loads(file.read_text())["keys"]]
        return []

    stop = threading.Event()
    fetcher = issuer_key_fetcher(tmp_path, f"{url}/", stop, seconds=0.02)
    fetcher.start()
    try:
        wait_until(lambda: brought() == ["monday"], what="the first key")
        write_keys(folder, "monday", "tuesday")
        wait_until(lambda: brought() == ["monday", "tuesday"], what="the second key")
        for broken in ("no JSON", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct"}]}'):
            (folder / "keys").write_text(broken)
            assert not stop.wait(0.1)
            assert brought() == ["monday", "tuesday"]
        (folder / "keys").unlink()
        assert not stop.wait(0.1)
        assert brought() == ["monday", "tuesday"]
        assert fetcher.is_alive()
    finally:
        stop.set()
        fetcher.join()


def test_keys_that_are_larger_than_a_megabyte_are_refused_in_the_log(issuer, tmp_path, caplog):
    url, folder = issuer
    write_keys(folder, "monday")
    with (folder / "keys").open("a") as keys:
        keys.write(" " * 1_000_000)  # JSON may consist of white space.
    stop = threading.Event()
    fetcher = issuer_key_fetcher(tmp_path, f"{url}/", stop, seconds=0.02)
    fetcher.start()
    try:
        wait_until(lambda: "1,000,000 bytes" in caplog.text, what="the reason")
        assert not (tmp_path / JWKS).exists()
    finally:
        stop.set()
        fetcher.join()


@pytest.mark.parametrize(
    "document", ['{"issuer": "https://other", "jwks_uri": "URL/keys"}', "[]", '{"issuer": "URL"}']
)
def test_a_document_of_another_issuer_is_refused_in_the_log(issuer, tmp_path, caplog, document):
    """Tokens of the configured issuer would be rejected, because they would name the
    other issuer.
    """
    url, folder = issuer
    write_keys(folder, "monday")
    (folder / ".well-known" / "openid-configuration").write_text(document.replace("URL", url))
    stop = threading.Event()
    fetcher = issuer_key_fetcher(tmp_path, url, stop, seconds=0.02)
    fetcher.start()
    try:
        wait_until(lambda: "document of server.jwt_issuer" in caplog.text, what="the reason")
        assert not (tmp_path / JWKS).exists()
    finally:
        stop.set()
        fetcher.join()
