"""Versions are swapped atomically, freed when their last request ends, and kept if the
next version fails.
"""

import gc
import itertools
import os
import shutil
import subprocess
import threading
import weakref
from functools import partial

import pytest

from mlflow_deploy_plugin.core.errors import NotFound, NotReady
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE, hash_folder
from mlflow_deploy_plugin.core.statedir.files import (
    LOADING,
    WANTED,
    read_workers,
    take_load_deaths,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    LoadingState,
    Wanted,
)
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.runtime.session import Placement
from tests.support import servers
from tests.support.disk import files_of_at_most
from tests.support.refusals import mentions

LOAD = partial(load_warm, placement=Placement(), intra_op_num_threads=1)


def version(repository, draw=0.0):
    """Return the version that answers this draw."""
    return repository.select_variant(None, draw=draw).loaded.version


def versions(repository):
    return {version(repository, draw / 10) for draw in range(10)}


@pytest.fixture
def loads():
    return []


@pytest.fixture
def repository(tmp_path, loads):
    """Return a repository without its thread; a test calls `poll`."""

    def load(folder, python=""):
        loads.append(folder)
        return LOAD(folder)

    repository = Repository(tmp_path, load)
    yield repository
    repository.stop()


@pytest.fixture
def serve(tmp_path, repository):
    """Write wanted variants of the endpoint e,
    and return the worker's state of them.
    """
    generations = iter(range(1, 100))

    def serve(**variants):
        servers.want(tmp_path, next(generations), {"e": variants})
        repository.poll()
        (state,) = read_workers(tmp_path)
        return state

    return serve


def test_nothing_wanted_is_not_ready(repository):
    repository.poll()
    assert "no model is" in repository.not_ready_reason()
    with pytest.raises(NotReady):
        repository.select_variant("e", draw=0.0)


@pytest.mark.long
def test_request_keeps_its_version(serve, repository, bias_folders):
    serve(v=servers.variant(bias_folders["1"]))
    leased = repository.select_variant(None, draw=0.0)
    dropped = weakref.ref(leased.loaded)
    serve(v=servers.variant(bias_folders["2"], "2"))
    assert version(repository) == "2"
    feeds = leased.loaded.predictor.schema.from_array([[1, 2, 3]])
    assert leased.loaded.predictor.run(feeds)["y"].tolist() == [[1006.0]]
    assert dropped() is not None
    del leased
    gc.collect()
    assert dropped() is None


def test_third_version_waits_for_the_first(serve, repository, bias_folders, loads):
    serve(v=servers.variant(bias_folders["1"]))
    leased = [repository.select_variant(None, draw=0.0)]
    serve(v=servers.variant(bias_folders["2"], "2"))
    third = threading.Thread(target=serve, kwargs={"v": servers.variant(bias_folders["3"], "3")})
    third.start()
    third.join(0.3)
    assert (len(loads), version(repository)) == (2, "2")
    leased.clear()
    third.join(20)
    assert (len(loads), version(repository)) == (3, "3")


def test_changed_weights_load_nothing(serve, repository, bias_folders, loads):
    serve(a=servers.variant(bias_folders["1"]), b=servers.variant(bias_folders["2"], "2", weight=0))
    before = repository.select_variant(None, draw=0.0).loaded
    serve(
        a=servers.variant(bias_folders["1"], weight=50),
        b=servers.variant(bias_folders["2"], "2", weight=50),
    )
    assert repository.select_variant(None, draw=0.0).loaded is before
    assert version(repository, 0.9) == "2"
    assert len(loads) == 2
    serve(a=servers.variant(bias_folders["1"]))
    assert versions(repository) == {"1"}


def test_version_moving_between_variants_is_kept(serve, repository, bias_folders, loads):
    old, new = (servers.variant(bias_folders[version], version) for version in "12")
    serve(champion=old, candidate=new | {"weight": 0})
    candidate = repository.table["e"].variants["candidate"].loaded

    serve(champion=new, candidate=new | {"weight": 0}, watched=new | {"shadow": True})
    assert {variant.loaded for variant in repository.table["e"].variants.values()} == {candidate}
    assert len(loads) == 2


@pytest.mark.long
def test_endpoints_share_a_version(repository, bias_folders, loads, tmp_path):
    first = servers.variant(bias_folders["1"])
    servers.want(tmp_path, 1, {"a": {"v": first}, "b": {"v": first}})
    repository.poll()
    shared = weakref.ref(repository.select_variant("a").loaded)
    assert repository.select_variant("b").loaded is shared()
    assert len(loads) == 1

    servers.want(tmp_path, 2, {"b": {"v": first}})
    repository.poll()
    assert shared() is not None
    servers.want(tmp_path, 3, {"b": {"v": servers.variant(bias_folders["2"], "2")}})
    repository.poll()
    gc.collect()
    assert shared() is None


def test_shadows_exclude_the_same_version(serve, repository, bias_folders):
    old, new = (servers.variant(bias_folders[version], version, weight=50) for version in "12")
    serve(champion=old, candidate=new)
    assert all(not variant.shadows for variant in repository.table["e"].answering)
    serve(champion=old, candidate=new, watched=new | {"shadow": True})
    shadows = {
        served.name: [shadow.name for shadow in served.shadows]
        for served in repository.table["e"].answering
    }
    assert shadows == {"champion": ["watched"], "candidate": []}


def test_sticky_callers_keep_their_variant(repository, bias_folders, tmp_path, caplog):
    generations = itertools.count(1)

    def serve(sticky, *weights):
        variants = {
            str(place): servers.variant(bias_folders[str(place)], str(place), weight=weight)
            for place, weight in enumerate(weights, 1)
        }
        endpoints = {"e": {"variants": variants, "sticky": sticky}}
        wanted = {"generation": next(generations), "endpoints": endpoints}
        write_state(tmp_path / WANTED, Wanted.model_validate(wanted))
        repository.poll()

    def names(**caller):
        return {repository.select_variant("e", draw=draw, **caller).name for draw in (0.1, 0.9)}

    serve({"header": "X-User-Id"}, 50, 50)
    assert len(names(headers={"x-user-id": "ann"})) == 1
    assert names() == {"1", "2"}

    serve({"key": "a"}, 50, 50)
    leased = [repository.select_variant("e", draw=draw) for draw in (0.1, 0.9)]
    assert [(variant.name, variant.key) for variant in leased] == [("1", "a"), ("2", "a")]
    choices = [names(key=key) for key in "abcdefgh"]
    assert {len(choice) for choice in choices} == {1}
    assert set().union(*choices) == {"1", "2"}

    serve({"key": "a"}, 100, 0)
    assert repository.select_variant("e", draw=0.9).key is None
    assert "sticky variants" not in caplog.text
    serve({"key": "z"}, 50, 50)
    assert mentions(caplog.text, "e/1", "version 1", "'z'", "sticky")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.onnx", None, "file 'model.onnx' is missing"),
        ("model.onnx", "no graph", "cannot load model.onnx"),
        (INPUT_EXAMPLE, '{"inputs": [[1, 2]]}', "cannot answer its own example"),
        (INPUT_EXAMPLE, "{", "not valid JSON"),
    ],
)
def test_failed_load_keeps_the_old_version(
    serve, repository, bias_folders, tmp_path, file, content, words
):
    serve(v=servers.variant(bias_folders["1"]))
    folder = servers.single_model(tmp_path / "spoilt")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    state = serve(v=servers.variant(folder, "2"))
    loaded = state.endpoints["e"]["v"]
    assert (state.generation, loaded.version) == (2, "1")
    assert words in loaded.error
    assert repository.not_ready_reason() == ""
    assert version(repository) == "1"
    healed = serve(v=servers.variant(bias_folders["3"], "3"))
    assert healed.endpoints["e"]["v"] == LoadedVariant(version="3")


def test_exchanged_signed_files_are_refused(serve, bias_folders, tmp_path):
    folder = servers.single_model(tmp_path / "signed")
    signed = servers.variant(folder, digest=hash_folder(folder))
    assert serve(v=signed).endpoints["e"]["v"].version == "1"
    shutil.copytree(bias_folders["2"], folder, dirs_exist_ok=True)
    serve(unsigned=servers.variant(folder))
    loaded = serve(unsigned=servers.variant(folder), v=signed).endpoints["e"]
    assert loaded["unsigned"].version == "1"
    assert loaded["v"].version == ""
    assert "were changed" in loaded["v"].error


def test_failed_first_version_is_not_ready(serve, repository, tmp_path):
    state = serve(v=servers.variant(tmp_path / "nothing", "1"))
    assert state.endpoints["e"]["v"].version == ""
    assert "no MLmodel file" in repository.not_ready_reason()
    with pytest.raises(NotReady, match="no MLmodel file"):
        repository.select_variant("e", draw=0.0)


def test_failed_new_variant_leaves_the_endpoint_ready(serve, repository, bias_folders, tmp_path):
    serve(a=servers.variant(bias_folders["1"]), b=servers.variant(tmp_path / "nothing", "2"))
    assert repository.not_ready_reason() == ""
    assert versions(repository) == {"1"}


def test_version_without_ranges_is_not_guarded(tmp_path, repository, model_folders, caplog):
    folders = {"known": "guarded", "unknown": "mixed"}
    wanted = {name: servers.variant(model_folders[kind]) for name, kind in folders.items()}
    servers.want(tmp_path, 1, {"e": wanted}, guard={"then": "flag"})
    repository.poll()
    served = repository.table["e"].variants
    assert [name for name, variant in served.items() if variant.guard] == ["known"]
    assert mentions(caplog.text, "e/unknown", "no ranges", "reference_data")
    assert "e/known" not in caplog.text


def test_unexpected_error_hides_its_details(tmp_path, caplog):
    def load(folder, python=""):
        raise MemoryError("secret")

    repository = Repository(tmp_path, load)
    servers.want(tmp_path, 1, servers.one_endpoint(tmp_path))
    repository.poll()
    (state,) = read_workers(tmp_path)
    assert "MemoryError" in state.endpoints["e"]["v"].error
    assert "secret" not in state.endpoints["e"]["v"].error
    assert "secret" in caplog.text


def test_example_may_hold_nan(serve, tmp_path):
    folder = servers.single_model(tmp_path / "m")
    (folder / INPUT_EXAMPLE).write_text(
        '{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, NaN, 3]]}}'
    )
    assert serve(v=servers.variant(folder)).endpoints["e"]["v"] == LoadedVariant(version="1")


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": "x"}', b"[]"])
def test_unreadable_wanted_file_changes_nothing(serve, repository, bias_folders, tmp_path, content):
    serve(v=servers.variant(bias_folders["1"]))
    (tmp_path / WANTED).write_bytes(content)
    repository.poll()
    assert version(repository) == "1"
    assert serve(v=servers.variant(bias_folders["2"], "2")).endpoints["e"]["v"].version == "2"


def test_endpoints_come_and_go(repository, bias_folders, tmp_path):
    first = {"v": servers.variant(bias_folders["1"])}
    second = {"v": servers.variant(bias_folders["2"], "2")}
    servers.want(tmp_path, 1, {"one": first, "two": second})
    repository.poll()
    served = [repository.select_variant(name).loaded.version for name in (None, "one", "two")]
    assert served == ["1", "1", "2"]
    servers.want(tmp_path, 2, {"two": second})
    repository.poll()
    assert version(repository) == "2"
    with pytest.raises(NotFound, match=r"'one' .*'two'"):
        repository.select_variant("one")


def test_pyfuncs_are_loaded_concurrently(tmp_path, bias_folders):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "MLmodel").write_text(
            "flavors: {python_function: {loader_module: mlflow.pyfunc.model}}"
        )
    both_load = threading.Barrier(2)

    def load(folder, python=""):
        both_load.wait(30)
        return LOAD(bias_folders["1"])

    repository = Repository(tmp_path, load)
    servers.want(
        tmp_path, 1, {folder.name: {"v": servers.variant(folder, "1")} for folder in folders}
    )
    repository.poll()

    assert list(repository.table) == ["a", "b"]
    assert repository.is_complete
    repository.stop()


def test_start_waits_for_the_wanted_version(tmp_path, bias_folders):
    may_load = threading.Event()

    def load(folder, python=""):
        may_load.wait()
        return LOAD(folder)

    servers.want(tmp_path, 1, servers.one_endpoint(bias_folders["1"]))
    repository = Repository(tmp_path, load)
    repository.start()
    try:
        assert not repository.wait_until_applied(0.05)
        may_load.set()
        assert repository.wait_until_applied(30)
        assert not repository.not_ready_reason()
    finally:
        repository.stop()


@pytest.mark.parametrize("wanted", [None, "broken", '{"generation": 1, "endpoints": {}}'])
def test_start_without_a_wanted_state_continues(tmp_path, wanted):
    if wanted is not None:
        (tmp_path / WANTED).write_text(wanted)
    repository = Repository(tmp_path, LOAD)
    repository.start()
    try:
        assert repository.wait_until_applied(30)
    finally:
        repository.stop()


def test_endpoint_without_a_version_raises_its_error(repository, bias_folders, tmp_path):
    endpoints = {
        "good": {"variants": {"v": servers.variant(bias_folders["1"])}},
        "bad": {"variants": {}, "errors": {"v": "models:/x/1: there is no registered model x"}},
    }
    write_state(tmp_path / WANTED, Wanted.model_validate({"generation": 1, "endpoints": endpoints}))
    repository.poll()
    assert repository.not_ready_reason() == ""
    with pytest.raises(NotReady, match=r"'bad'.*v: models:/x/1"):
        repository.select_variant("bad", draw=0.0)


def test_dead_worker_reports_its_load(tmp_path, bias_folders):
    def load(folder, python=""):
        other = subprocess.Popen(["true"])
        other.wait()
        write_state(tmp_path / LOADING / "1.json", LoadingState(pid=other.pid, folder=folder))
        assert take_load_deaths(tmp_path) == [folder]
        assert take_load_deaths(tmp_path) == []
        left = [file.name for file in (tmp_path / LOADING).glob("*.json")]
        assert left == [f"{os.getpid()}-{threading.get_ident()}.json"]
        return LOAD(folder)

    repository = Repository(tmp_path, load)
    servers.want(tmp_path, 1, servers.one_endpoint(bias_folders["1"]))
    repository.poll()
    assert repository.not_ready_reason() == ""
    assert list((tmp_path / LOADING).iterdir()) == []


def test_refused_worker_state_is_written_later(tmp_path, repository, caplog):
    (tmp_path / "workers").mkdir()
    servers.want(tmp_path, 3, {})
    with files_of_at_most(10):
        repository.poll()
        repository.poll()
    assert read_workers(tmp_path) == []
    assert {record.getMessage() for record in caplog.records} == {
        "the state of this worker cannot be written: File too large"
    }
    repository.poll()
    assert [worker.generation for worker in read_workers(tmp_path)] == [3]
