import gc
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.serve.agent.fetch import ModelCache
from tests.support.disk import files_of_at_most
from tests.support.waiting import wait_until

MakeModel = Callable[..., Path]


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "state").mkdir()
    return ModelCache(tmp_path / "cache", tmp_path / "state")


def left_overs(tmp_path):
    return list((tmp_path / "cache").glob("fetching-*"))


def test_a_version_is_fetched_once_and_found_again(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    folder = cache.fetch(str(source), "registry x 1")
    assert (folder / "MLmodel").read_bytes() == (source / "MLmodel").read_bytes()
    assert not left_overs(tmp_path)

    source.rename(tmp_path / "gone")
    assert cache.fetch(str(source), "registry x 1") == folder
    with pytest.raises(NotFound):
        cache.fetch(str(source), "registry x 2")


def test_a_cached_copy_of_other_files_than_the_judged_ones_is_not_taken(
    cache, make_model, tmp_path
):
    source = make_model(tmp_path / "source")
    first = cache.fetch(str(source), "registry x 1")
    make_model(source, "m-2")
    second = cache.fetch(str(source), None)
    assert second != first
    for judged, folder in ((first, first), (second, second), (first, second)):
        assert cache.fetch(str(source), "registry x 1", judged=judged.name) == folder


def test_without_a_lasting_identity_it_is_fetched_every_time(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source", "m-1")
    first = cache.fetch(str(source), None)
    (source / "MLmodel").write_text((source / "MLmodel").read_text().replace("m-1", "m-2"))
    assert cache.fetch(str(source), None) != first


def test_the_same_files_from_two_sources_are_kept_once(cache, make_model, tmp_path):
    folders = {cache.fetch(str(make_model(tmp_path / name)), name) for name in ("a", "b")}
    assert len(folders) == 1


def test_files_that_were_changed_on_disk_are_fetched_again(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    folder = cache.fetch(str(source), "x")
    (folder / "model.onnx").write_bytes(b"torn")
    assert cache.fetch(str(source), "x") == folder
    assert (folder / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


@pytest.mark.parametrize("fault", ["no MLmodel", "no graph", "link"])
def test_fetching_an_invalid_model_leaves_no_files_behind(cache, make_model, tmp_path, fault):
    source = make_model(tmp_path / "source")
    if fault == "no MLmodel":
        (source / "MLmodel").unlink()
    else:
        (source / "model.onnx").unlink()
    if fault == "link":
        (source / "model.onnx").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArtifact if fault == "link" else NotFound):
        cache.fetch(str(source), "x")
    assert not left_overs(tmp_path)
    assert not list((tmp_path / "cache" / "models").iterdir())
    assert not (tmp_path / "cache" / "sources").exists()


def test_many_fetchers_at_the_same_time_get_the_same_whole_folder(make_model, tmp_path):
    source = make_model(tmp_path / "source")
    start = threading.Barrier(8)
    got: list[Path] = []

    def fetch(number):
        own_cache = ModelCache(tmp_path / "cache", tmp_path / f"state-{number}")
        start.wait()
        got.append(own_cache.fetch(str(source), "x"))

    fetchers = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for fetcher in fetchers:
        fetcher.start()
    for fetcher in fetchers:
        fetcher.join()
    assert len(got) == 8
    assert len(set(got)) == 1
    assert {path.name for path in got[0].iterdir()} == {"MLmodel", "model.onnx"}
    assert not left_overs(tmp_path)


def test_old_versions_are_deleted_but_none_that_a_server_wants(cache, make_model, tmp_path):
    folders = [
        cache.fetch(str(make_model(tmp_path / f"s{n}", f"m-{n}")), f"s{n}") for n in range(9)
    ]
    for age, folder in enumerate(reversed(folders)):
        os.utime(folder, (time.time() - age, time.time() - age))
    variant = {"model_uri": "models:/x/1", "model": "x", "version": "1", "folder": str(folders[0])}
    wanted = {"generation": 1, "endpoints": {"e": {"variants": {"v": variant}}}}
    (tmp_path / "state" / "wanted.json").write_text(json.dumps(wanted))

    cache.prune()
    assert all(folder.exists() for folder in folders), "all were asked for within the hour"

    cache.prune(now=time.time() + 4000)
    assert [folder.exists() for folder in folders] == [True] + [False] * 3 + [True] * 5


def test_a_version_that_is_found_again_is_not_deleted_while_it_is_looked_at(
    cache, make_model, tmp_path, monkeypatch
):
    folders = [
        cache.fetch(str(make_model(tmp_path / f"s{n}", f"m-{n}")), f"s{n}") for n in range(6)
    ]
    os.utime(folders[0], (time.time() - 4000, time.time() - 4000))
    other = ModelCache(tmp_path / "cache", tmp_path / "state")
    file_digest = hashlib.file_digest

    def prune_and_hash(*arguments):
        other.prune()
        return file_digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", prune_and_hash)
    assert cache.fetch(str(tmp_path / "s0"), "s0") == folders[0]
    assert (folders[0] / "model.onnx").exists()


def test_partial_fetches_of_a_killed_agent_are_deleted_after_a_day(cache, tmp_path):
    for name, hours in (("killed", 25), ("at-work", 1)):
        begun = tmp_path / "cache" / f"fetching-{name}"
        begun.mkdir()
        os.utime(begun, (time.time() - hours * 3600,) * 2)

    cache.prune()
    assert [folder.name for folder in (tmp_path / "cache").glob("fetching-*")] == [
        "fetching-at-work"
    ]


def test_a_server_that_is_gone_holds_nothing(make_model, tmp_path):
    ModelCache(tmp_path / "cache", tmp_path / "never-made")
    cache = ModelCache(tmp_path / "cache", tmp_path)
    cache.prune()
    assert len(list((tmp_path / "cache" / "users").iterdir())) == 1


def test_a_user_that_another_agent_is_adding_or_forgetting_does_not_matter(cache, tmp_path):
    (tmp_path / "cache" / "users" / "forgotten").symlink_to(tmp_path / "gone")
    (tmp_path / "cache" / "users" / ".added.1a2b").symlink_to(tmp_path / "gone")
    cache.prune()
    assert (tmp_path / "cache" / "models").is_dir()


def test_a_cache_that_takes_no_more_is_named(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    (tmp_path / "cache" / "models").rmdir()
    (tmp_path / "cache" / "models").touch()
    with pytest.raises(OnnxserveError, match=r"/cache cannot store.*/source: Not"):
        cache.fetch(str(source), "x")
    assert not left_overs(tmp_path)


def test_an_unwritable_cache_folder_is_a_config_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="cannot be written"):
        ModelCache(tmp_path / "file" / "cache", tmp_path)


def test_an_agent_that_is_started_anew_on_a_full_disk_gets_its_cache(tmp_path):
    """Shipping captured rows frees space, and needs a running agent."""
    ModelCache(tmp_path / "cache", tmp_path)
    with files_of_at_most(1):
        ModelCache(tmp_path / "cache", tmp_path)


def test_files_that_are_not_those_that_were_saved_are_not_taken(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    document = yaml.safe_load((source / "MLmodel").read_text())
    saved = (source / "model.onnx").read_bytes()
    digests = {"model.onnx": f"sha256:{hashlib.sha256(saved).hexdigest()}"}
    document["flavors"]["onnxserve"] = {"data": "model.onnx", "digests": digests}
    (source / "MLmodel").write_text(yaml.safe_dump(document))
    (source / "model.onnx").write_bytes(saved + b"\0")
    with pytest.raises(RegistryUnavailable, match=r"'model\.onnx'"):
        cache.fetch(str(source), "registry x 1")
    assert not left_overs(tmp_path)
    (source / "model.onnx").write_bytes(saved)
    assert (cache.fetch(str(source), "registry x 1") / "model.onnx").read_bytes() == saved


def test_the_bytes_of_a_download_are_counted_while_it_runs(
    cache, make_model, tmp_path, monkeypatch
):
    source = make_model(tmp_path / "source")
    counted = []

    def download(location, destination):
        (destination / "part").write_bytes(b"x" * 100)
        (destination / "gone").mkdir()
        counted.append(cache.received_bytes(location))
        raise RegistryUnavailable("it breaks off")

    scandir = os.scandir

    def scan(folder):  # Simulate a download that ends while its bytes are counted.
        if str(folder).endswith("gone"):
            raise FileNotFoundError
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.fetch.download", download)
    assert cache.received_bytes(str(source)) == 0
    with pytest.raises(RegistryUnavailable):
        cache.fetch(str(source), "registry x 1")
    assert counted == [100]
    assert cache.received_bytes(str(source)) == 0


def test_the_threads_of_mlflows_client_end_with_the_next_download(cache, monkeypatch):
    """The agent rarely collects garbage, and each client of an artifact store is a
    cycle with eight threads.
    """

    class Client:
        def __init__(self) -> None:
            self.itself = self
            self.pool = ThreadPoolExecutor(1, "of-mlflow")
            self.pool.submit(int).result()

    def download(location, destination):
        Client()
        raise RegistryUnavailable("it breaks off")

    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.fetch.download", download)
    gc.disable()
    try:
        for _ in range(5):
            with pytest.raises(RegistryUnavailable):
                cache.fetch("models:/x/1", "registry x 1")
    finally:
        gc.enable()
    alive = lambda: sum(thread.name.startswith("of-mlflow") for thread in threading.enumerate())  # noqa: E731
    wait_until(lambda: alive() <= 1, 10, "the threads of the first four end")
