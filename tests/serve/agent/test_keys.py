"""The agent fetches API keys from the store, and keeps them while the store is down."""

import threading
import time
from functools import partial

from mlflow_deploy_plugin.core.statedir.files import KEYS, read_state
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, ValidKeys
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.serve.agent.keys import api_key_fetcher
from tests.support.waiting import wait_until


def test_keys_come_and_go_and_stay_while_the_store_is_away(tmp_path):
    database = tmp_path / "store.db"
    url = f"sqlite:///{database}"
    store = open_store(url)
    stored = ApiKeys(store)
    stored.create("shop", ["infer"], ["flights"])

    def brought():
        read = read_state(tmp_path / KEYS, ValidKeys) or ValidKeys()
        return {key.name: key.endpoints for key in read.keys.values()}

    stop = threading.Event()
    fetcher = api_key_fetcher(tmp_path, url, 0.02, stop)
    fetcher.start()
    try:
        wait_until(lambda: brought() == {"shop": ("flights",)}, what="the first key")
        stored.create("ops", ["admin"])
        wait_until(lambda: brought() == {"shop": ("flights",), "ops": ()}, what="the second key")
        stored.revoke("shop")
        wait_until(lambda: brought() == {"ops": ()}, what="the revocation")
        store.close()
        database.rename(tmp_path / "away.db")
        database.mkdir()  # The database can no longer be opened.
        assert not stop.wait(0.3)
        assert brought() == {"ops": ()}
        assert fetcher.is_alive()
    finally:
        stop.set()
        fetcher.join()


def test_a_mounted_file_takes_the_place_of_the_store(tmp_path, caplog):
    mounted = tmp_path / "mounted.json"
    refusal = f"{mounted} is not a file written by `onnxserve keys export`"

    def is_brought(keys):
        return read_state(tmp_path / KEYS, ValidKeys) == keys

    stop = threading.Event()
    fetcher = api_key_fetcher(tmp_path, mounted, 0.02, stop)
    fetcher.start()
    try:
        for name in ("shop", "ops"):
            written_at = time.time()
            keys = ValidKeys(keys={"0" * 64: KeyEntry(name=name, scopes=("infer",))})
            mounted.write_text(keys.model_dump_json())
            wait_until(partial(is_brought, keys), what=name)
            caplog.clear()
            mounted.write_text("{")
            wait_until(lambda: refusal in caplog.text, what="the refusal")
            last_fetched_at = fetcher.fetched_at
            mounted.unlink()
            wait_until(lambda: "No such file" in caplog.text, what="another reason")
            assert is_brought(keys)
            assert written_at <= fetcher.fetched_at == last_fetched_at
    finally:
        stop.set()
        fetcher.join()
