import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryRefused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from tests.support.disk import files_of_at_most


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "state").mkdir()
    return ModelCache(tmp_path / "cache", tmp_path / "state")


def left_overs(tmp_path):
    return list((tmp_path / "cache").glob("fetching-*"))


def test_version_is_fetched_once(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    folder = cache.fetch(str(source), "registry x 1")
    assert (folder / "MLmodel").read_bytes() == (source / "MLmodel").read_bytes()
    assert not left_overs(tmp_path)

    source.rename(tmp_path / "gone")
    assert cache.fetch(str(source), "registry x 1") == folder
    with pytest.raises(NotFound):
        cache.fetch(str(source), "registry x 2")


def test_files_other_than_judged_are_refetched(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    first = cache.fetch(str(source), "registry x 1")
    make_model(source, "m-2")
    second = cache.fetch(str(source), None)
    assert second != first
    for judged, folder in ((first, first), (second, second), (first, second)):
        assert cache.fetch(str(source), "registry x 1", judged=judged.name) == folder
    make_model(source, "m-3")  # Without a lasting identity, the files are fetched every time.
    assert cache.fetch(str(source), None) != second


def test_files_changed_on_disk_are_refetched(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    folder = cache.fetch(str(source), "x")
    (folder / "model.onnx").write_bytes(b"torn")
    assert cache.fetch(str(source), "x") == folder
    assert (folder / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


@pytest.mark.parametrize("fault", ["no MLmodel", "no graph", "link"])
def test_invalid_model_leaves_no_files(cache, make_model, tmp_path, fault):
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


def test_concurrent_fetches_return_one_complete_folder(make_model, tmp_path):
    source = make_model(tmp_path / "source")
    start = threading.Barrier(8)

    def fetch(number):
        own_cache = ModelCache(tmp_path / "cache", tmp_path / f"state-{number}")
        start.wait()
        return own_cache.fetch(str(source), "x")

    with ThreadPoolExecutor(8) as pool:
        (folder,) = set(pool.map(fetch, range(8)))
    assert {path.name for path in folder.iterdir()} == {"MLmodel", "model.onnx"}
    assert not left_overs(tmp_path)


@pytest.fixture
def fetch_versions(cache, make_model, tmp_path):
    def fetch(count):
        return [
            cache.fetch(str(make_model(tmp_path / f"s{n}", f"m-{n}")), f"s{n}")
            for n in range(count)
        ]

    return fetch


def test_old_versions_are_deleted_unless_used(cache, fetch_versions, tmp_path):
    folders = fetch_versions(9)
    for age, folder in enumerate(reversed(folders)):
        os.utime(folder, (time.time() - age, time.time() - age))
    variant = {"model_uri": "models:/x/1", "model": "x", "version": "1", "folder": str(folders[0])}
    wanted = {"generation": 1, "endpoints": {"e": {"variants": {"v": variant}}}}
    (tmp_path / "state" / "wanted.json").write_text(json.dumps(wanted))
    job = {"endpoint": "e", "variant": {**variant, "folder": str(folders[1])}}
    write_atomically(tmp_path / "state" / "jobs" / "1" / "request.json", json.dumps(job).encode())

    cache.prune()
    assert all(folder.exists() for folder in folders), "all were asked for within the hour"

    cache.prune(now=time.time() + 4000)
    assert [folder.exists() for folder in folders] == [True] * 2 + [False] * 2 + [True] * 5


def test_hashing_protects_a_version_from_deletion(cache, fetch_versions, tmp_path, monkeypatch):
    folders = fetch_versions(6)
    os.utime(folders[0], (time.time() - 4000, time.time() - 4000))
    other = ModelCache(tmp_path / "cache", tmp_path / "state")
    file_digest = hashlib.file_digest

    def prune_and_hash(*arguments):
        other.prune()
        return file_digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", prune_and_hash)
    assert cache.fetch(str(tmp_path / "s0"), "s0") == folders[0]
    assert (folders[0] / "model.onnx").exists()


def test_partial_fetches_are_deleted_after_a_day(cache, tmp_path):
    for name, hours in (("killed", 25), ("at-work", 1)):
        begun = tmp_path / "cache" / f"fetching-{name}"
        begun.mkdir()
        os.utime(begun, (time.time() - hours * 3600,) * 2)

    cache.prune()
    assert [folder.name for folder in (tmp_path / "cache").glob("fetching-*")] == [
        "fetching-at-work"
    ]


def test_missing_users_are_ignored(tmp_path):
    ModelCache(tmp_path / "cache", tmp_path / "never-made")
    cache = ModelCache(tmp_path / "cache", tmp_path)
    users = tmp_path / "cache" / "users"
    cache.prune()
    assert len(list(users.iterdir())) == 1
    (users / ".added.1a2b").symlink_to(tmp_path / "gone")
    cache.prune()
    assert (tmp_path / "cache" / "models").is_dir()


def test_full_cache_is_named(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    (tmp_path / "cache" / "models").rmdir()
    (tmp_path / "cache" / "models").touch()
    with pytest.raises(OnnxserveError, match=r"/cache cannot store.*/source: Not"):
        cache.fetch(str(source), "x")
    assert not left_overs(tmp_path)


def test_unwritable_cache_is_a_config_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="cannot be written"):
        ModelCache(tmp_path / "file" / "cache", tmp_path)


def test_cache_opens_on_a_full_disk(tmp_path):
    """Shipping captured rows frees space, and needs a running agent."""
    ModelCache(tmp_path / "cache", tmp_path)
    with files_of_at_most(1):
        ModelCache(tmp_path / "cache", tmp_path)


def test_files_other_than_saved_are_refused(cache, make_model, tmp_path):
    source = make_model(tmp_path / "source")
    saved_digest(source)
    saved = (source / "model.onnx").read_bytes()
    (source / "model.onnx").write_bytes(saved + b"\0")
    with pytest.raises(RegistryUnavailable, match=r"'model\.onnx'"):
        cache.fetch(str(source), "registry x 1")
    assert not left_overs(tmp_path)
    (source / "model.onnx").write_bytes(saved)
    assert (cache.fetch(str(source), "registry x 1") / "model.onnx").read_bytes() == saved


def test_bytes_of_a_download_are_counted(cache, make_model, tmp_path, monkeypatch):
    source = str(make_model(tmp_path / "source"))
    counted = []

    def download(location, destination):
        (destination / "part").write_bytes(b"x" * 100)
        counted.append(cache.received_bytes(location))
        raise RegistryUnavailable("it breaks off")

    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.fetch.download", download)
    with pytest.raises(RegistryUnavailable):
        cache.fetch(source, "registry x 1")
    assert counted == [100]
    assert cache.received_bytes(source) == 0


@pytest.fixture
def registry(tmp_path):
    return MlflowRegistry(ModelCache(tmp_path / "cache", tmp_path / "state"))


def test_folder_is_served_in_place(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "flights", "m-7")
    version = registry.fetch(resolve(str(folder)))
    assert version.model == "flights"
    assert version.version == "m-7"
    assert version.folder == folder
    assert version.aspects == {
        "flavor": "onnx",
        "model_id": "m-7",
        "run_id": "r-1",
        "parity": "no-original",
    }
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_registry_metadata_overrides_the_files(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "model")
    resolved = ResolvedModel(
        "models:/x@a", "x", "4", str(folder), True, {"alias": "a", "parity": "proven"}
    )
    version = registry.fetch(resolved)
    assert version.model == "x"
    assert version.version == "4"
    aspects = {"alias": "a", "parity": "proven"}
    assert version.aspects == {"flavor": "onnx", "model_id": "m-1", "run_id": "r-1", **aspects}


def test_pyfunc_is_marked_as_code(registry, tmp_path):
    folder = tmp_path / "pyfunc"
    folder.mkdir()
    (folder / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: x}}\nmodel_id: m-9\n"
    )
    version = registry.fetch(resolve(str(folder)))
    assert (version.version, version.runs_code) == ("m-9", True)


def test_folder_with_a_link_is_refused(registry, make_model, tmp_path):
    folder = make_model(tmp_path / "model")
    (folder / "extra").symlink_to("/etc/hostname")
    with pytest.raises(InvalidArtifact, match=r"'extra'.*link"):
        registry.fetch(resolve(str(folder)))


def saved_digest(folder, name="model.onnx"):
    """Write the entries of the file into MLmodel, as the flavor does."""
    document = yaml.safe_load((folder / "MLmodel").read_text())
    section = document["flavors"].setdefault("onnxserve", {"data": "model.onnx"})
    section["digests"] = {
        name: f"sha256:{hashlib.sha256((folder / 'model.onnx').read_bytes()).hexdigest()}"
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("uri", ["{}", "file://{}"])
@pytest.mark.parametrize("altered", [b"", b"another model"])
def test_folder_with_a_changed_graph_is_refused(registry, make_model, tmp_path, uri, altered):
    folder = make_model(tmp_path / "model")
    saved_digest(folder)
    registry.fetch(resolve(uri.format(folder)))
    (folder / "model.onnx").write_bytes(altered)
    with pytest.raises(InvalidArtifact, match=r"'model\.onnx' was changed.*sha256:\w+, but"):
        registry.fetch(resolve(uri.format(folder)))


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "data/../../secret"])
def test_digest_outside_the_folder_is_refused(registry, make_model, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"")
    folder = make_model(tmp_path / "model")
    saved_digest(folder, name)
    with pytest.raises(InvalidArtifact, match="outside"):
        registry.fetch(resolve(str(folder)))


def test_unregistered_model_needs_no_report(registry, tmp_path):
    assert registry.report_failure(str(tmp_path), "it does not load")


@pytest.mark.parametrize(
    ("error", "is_final"),
    [(RegistryRefused("no permission"), True), (RegistryUnavailable("down"), False)],
)
def test_refused_tag_is_not_retried(registry, monkeypatch, error, is_final):
    monkeypatch.setattr(
        "mlflow_deploy_plugin.serve.agent.fetch.tag_version", Mock(side_effect=error)
    )
    assert registry.report_failure("models:/tiny/2", "it does not load") is is_final
