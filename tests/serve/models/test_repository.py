"""Versions are swapped atomically, freed when their last request ends, and kept if the
next version fails.
"""

import gc
import os
import shutil
import subprocess
import threading
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from mlflow_deploy_plugin.core.errors import NotFound, NotReady
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE, combine_hashes, hash_files
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
    WorkerState,
)
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.runtime.session import Placement
from tests.support import servers
from tests.support.disk import files_of_at_most
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

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

    def load(folder):
        loads.append(folder)
        return LOAD(folder)

    repository = Repository(tmp_path, load)
    yield repository
    repository.stop()


Serve = Callable[..., WorkerState]


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


def test_before_anything_is_wanted_nothing_answers(repository):
    repository.poll()
    assert "no model is" in repository.not_ready_reason()
    with pytest.raises(NotReady):
        repository.select_variant("e", draw=0.0)


@pytest.mark.long
def test_a_request_keeps_its_version_until_it_lets_go(serve, repository, bias_folders):
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


def test_a_third_version_is_loaded_when_the_first_has_left(serve, repository, bias_folders, loads):
    serve(v=servers.variant(bias_folders["1"]))
    leased = [repository.select_variant(None, draw=0.0)]
    serve(v=servers.variant(bias_folders["2"], "2"))
    third = threading.Thread(target=serve, kwargs={"v": servers.variant(bias_folders["3"], "3")})
    third.start()
    third.join(0.3)
    assert len(loads) == 2
    assert version(repository) == "2"
    leased.clear()
    third.join(20)
    assert len(loads) == 3
    assert version(repository) == "3"


def test_a_change_of_weights_or_aspects_loads_nothing(serve, repository, bias_folders, loads):
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


def test_a_version_that_moves_from_variant_to_variant_is_not_loaded_again(
    serve, repository, bias_folders, loads
):
    old, new = (servers.variant(bias_folders[version], version) for version in "12")
    serve(champion=old, candidate=new | {"weight": 0})
    candidate = repository.table["e"].variants["candidate"].loaded

    serve(champion=new, candidate=new | {"weight": 0}, watched=new | {"shadow": True})
    assert {variant.loaded for variant in repository.table["e"].variants.values()} == {candidate}
    serve(champion=new)
    assert repository.select_variant(None, draw=0.0).loaded is candidate
    assert len(loads) == 2


@pytest.mark.long
def test_endpoints_share_a_version_and_the_last_one_frees_it(
    repository, bias_folders, loads, tmp_path
):
    variant = servers.variant(bias_folders["1"])
    servers.want(tmp_path, 1, {"a": {"v": variant}, "b": {"v": variant}})
    repository.poll()
    shared = weakref.ref(repository.select_variant("a", draw=0.0).loaded)
    assert repository.select_variant("b", draw=0.0).loaded is shared()
    assert len(loads) == 1

    servers.want(tmp_path, 2, {"b": {"v": variant}})
    repository.poll()
    assert shared() is not None
    servers.want(tmp_path, 3, {"b": {"v": servers.variant(bias_folders["2"], "2")}})
    repository.poll()
    gc.collect()
    assert shared() is None


def test_whoever_answers_knows_the_shadows_but_not_one_of_its_own_version(
    serve, repository, bias_folders
):
    old, new = (servers.variant(bias_folders[version], version, weight=50) for version in "12")
    serve(champion=old, candidate=new)
    assert all(not variant.shadows for variant in repository.table["e"].answering)
    serve(champion=old, candidate=new, watched=new | {"shadow": True})
    shadows = {
        served.name: [shadow.name for shadow in served.shadows]
        for served in repository.table["e"].answering
    }
    assert shadows == {"champion": ["watched"], "candidate": []}


def test_a_header_or_a_column_keeps_a_caller_only_where_there_is_a_choice(
    repository, bias_folders, tmp_path, caplog
):
    def serve(generation, sticky, *weights):
        variants = {
            str(place): {
                "model_uri": "m",
                "model": "m",
                "version": str(place),
                "folder": bias_folders[str(place)],
            }
            | {"weight": weight}
            for place, weight in enumerate(weights, 1)
        }
        endpoints = {"e": {"variants": variants, "sticky": sticky}}
        write_state(
            tmp_path / WANTED,
            Wanted.model_validate({"generation": generation, "endpoints": endpoints}),
        )
        repository.poll()

    serve(1, {"header": "X-User-Id"}, 50, 50)
    names = {
        repository.select_variant("e", draw=draw / 10, headers={"x-user-id": "ann"}).name
        for draw in range(10)
    }
    assert len(names) == 1
    assert {repository.select_variant("e", draw=draw / 10).name for draw in range(10)} == {"1", "2"}

    serve(2, {"key": "a"}, 50, 50)
    leased = [repository.select_variant("e", draw=draw) for draw in (0.1, 0.9)]
    assert [(variant.name, variant.key) for variant in leased] == [("1", "a"), ("2", "a")]
    choices = [
        [repository.select_variant("e", draw=draw, key=key).name for key in "abcdefgh"]
        for draw in (0.1, 0.9)
    ]
    assert choices[0] == choices[1]
    assert set(choices[0]) == {"1", "2"}

    serve(3, {"key": "a"}, 100, 0)
    assert repository.select_variant("e", draw=0.9).key is None
    assert "sticky variants" not in caplog.text
    serve(4, {"key": "z"}, 50, 50)
    assert mentions(caplog.text, "e/1", "version 1", "'z'", "sticky")


def test_a_variant_in_the_shadow_or_without_weight_never_answers(serve, repository, bias_folders):
    serve(
        a=servers.variant(bias_folders["1"], weight=0),
        b=servers.variant(bias_folders["2"], "2", weight=100, shadow=True),
        c=servers.variant(bias_folders["3"], "3", weight=1),
    )
    assert versions(repository) == {"3"}


def without_graph(folder):
    (folder / "model.onnx").unlink()


def with_a_broken_graph(folder):
    (folder / "model.onnx").write_bytes(b"no graph")


def with_an_example_that_does_not_fit(folder):
    (folder / INPUT_EXAMPLE).write_text('{"inputs": [[1, 2]]}')


def with_an_example_that_is_no_json(folder):
    (folder / INPUT_EXAMPLE).write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_graph, "file 'model.onnx' is missing"),
        (with_a_broken_graph, "cannot load model.onnx"),
        (with_an_example_that_does_not_fit, "cannot answer its own example"),
        (with_an_example_that_is_no_json, "not valid JSON"),
    ],
)
def test_a_failed_load_keeps_the_old_version_and_reports_its_error(
    serve, repository, bias_folders, tmp_path, spoil, words
):
    serve(v=servers.variant(bias_folders["1"]))
    spoil(servers.single_model(tmp_path / "spoilt"))
    state = serve(v=servers.variant(tmp_path / "spoilt", "2"))
    loaded = state.endpoints["e"]["v"]
    assert state.generation == 2
    assert loaded.version == "1"
    assert words in loaded.error
    assert repository.not_ready_reason() == ""
    assert version(repository) == "1"
    healed = serve(v=servers.variant(bias_folders["3"], "3"))
    assert healed.endpoints["e"]["v"] == LoadedVariant(version="3")


def test_exchanged_files_of_a_signed_version_are_not_loaded(serve, bias_folders, tmp_path):
    folder = servers.single_model(tmp_path / "signed")
    signed = servers.variant(folder, digest=combine_hashes(hash_files(folder)))
    assert serve(v=signed).endpoints["e"]["v"].version == "1"
    shutil.copytree(bias_folders["2"], folder, dirs_exist_ok=True)
    serve(unsigned=servers.variant(folder))
    loaded = serve(unsigned=servers.variant(folder), v=signed).endpoints["e"]
    assert loaded["unsigned"].version == "1"
    assert loaded["v"].version == ""
    assert "signature" in loaded["v"].error


def test_a_first_version_that_fails_says_why_to_whoever_asks(serve, repository, tmp_path):
    state = serve(v=servers.variant(tmp_path / "nothing", "1"))
    assert state.endpoints["e"]["v"].version == ""
    assert "no MLmodel file" in repository.not_ready_reason()
    with pytest.raises(NotReady, match="no MLmodel file"):
        repository.select_variant("e", draw=0.0)


def test_a_failing_new_variant_leaves_the_endpoint_ready(serve, repository, bias_folders, tmp_path):
    serve(a=servers.variant(bias_folders["1"]), b=servers.variant(tmp_path / "nothing", "2"))
    assert repository.not_ready_reason() == ""
    assert versions(repository) == {"1"}


def test_an_unexpected_error_is_logged_and_reported_without_details(tmp_path, caplog):
    def load(folder):
        raise MemoryError("secret")

    repository = Repository(tmp_path, load)
    servers.want(tmp_path, 1, servers.one_endpoint(tmp_path))
    repository.poll()
    (state,) = read_workers(tmp_path)
    assert "MemoryError" in state.endpoints["e"]["v"].error
    assert "secret" not in state.endpoints["e"]["v"].error
    assert "secret" in caplog.text


def test_an_example_warms_and_may_hold_nan(serve, tmp_path):
    folder = servers.single_model(tmp_path / "m")
    (folder / INPUT_EXAMPLE).write_text(
        '{"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, NaN, 3]]}}'
    )
    assert serve(v=servers.variant(folder)).endpoints["e"]["v"] == LoadedVariant(version="1")


@pytest.mark.parametrize("content", [b"", b"{", b'{"generation": "x"}', b"[]"])
def test_a_wanted_file_that_cannot_be_read_changes_nothing(
    serve, repository, bias_folders, tmp_path, content
):
    serve(v=servers.variant(bias_folders["1"]))
    (tmp_path / WANTED).write_bytes(content)
    repository.poll()
    assert version(repository) == "1"
    assert serve(v=servers.variant(bias_folders["2"], "2")).endpoints["e"]["v"].version == "2"


def test_endpoints_come_and_go(repository, bias_folders, tmp_path):
    first = servers.variant(bias_folders["1"])
    second = servers.variant(bias_folders["2"], "2")
    servers.want(tmp_path, 1, {"one": {"v": first}, "two": {"v": second}})
    repository.poll()
    assert [repository.select_variant(name).loaded.version for name in (None, "one", "two")] == [
        "1",
        "1",
        "2",
    ]
    servers.want(tmp_path, 2, {"two": {"v": second}})
    repository.poll()
    assert version(repository) == "2"
    with pytest.raises(NotFound, match=r"'one' .*'two'"):
        repository.select_variant("one", draw=0.0)


def test_pyfuncs_of_new_endpoints_are_loaded_side_by_side(tmp_path, bias_folders):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "MLmodel").write_text(
            "flavors: {python_function: {loader_module: mlflow.pyfunc.model}}"
        )
    both_load = threading.Barrier(2)

    def load(folder):
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


def test_the_thread_follows_and_ends(tmp_path, bias_folders):
    repository = Repository(tmp_path, LOAD)
    repository.start()
    servers.want(tmp_path, 1, servers.one_endpoint(bias_folders["1"]))
    wait_until(lambda: not repository.not_ready_reason() and len(read_workers(tmp_path)) == 1)
    repository.stop()
    assert read_workers(tmp_path) == []


def test_waiting_for_the_start_ends_once_the_wanted_version_is_loaded(tmp_path, bias_folders):
    may_load = threading.Event()

    def load(folder):
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
def test_without_a_valid_wanted_state_the_start_is_not_waited_for(tmp_path, wanted):
    if wanted is not None:
        (tmp_path / WANTED).write_text(wanted)
    repository = Repository(tmp_path, LOAD)
    repository.start()
    try:
        assert repository.wait_until_applied(30)
    finally:
        repository.stop()


def test_selecting_an_endpoint_without_a_version_raises_the_agents_error(
    repository, bias_folders, tmp_path
):
    endpoints = {
        "good": {"variants": {"v": servers.variant(bias_folders["1"])}},
        "bad": {"variants": {}, "errors": {"v": "models:/x/1: there is no registered model x"}},
    }
    write_state(tmp_path / WANTED, Wanted.model_validate({"generation": 1, "endpoints": endpoints}))
    repository.poll()
    assert repository.not_ready_reason() == ""
    with pytest.raises(NotReady, match=r"'bad'.*v: models:/x/1"):
        repository.select_variant("bad", draw=0.0)


def test_a_worker_that_dies_of_loading_leaves_word_of_it(tmp_path, bias_folders):
    def load(folder):
        other = subprocess.Popen(["true"])
        other.wait()
        write_state(tmp_path / LOADING / "1.json", LoadingState(pid=other.pid, folder=folder))
        assert take_load_deaths(tmp_path) == [folder]
        assert take_load_deaths(tmp_path) == []
        assert [file.name for file in (tmp_path / LOADING).glob("*.json")] == [
            f"{os.getpid()}.json"
        ]
        return LOAD(folder)

    repository = Repository(tmp_path, load)
    servers.want(tmp_path, 1, servers.one_endpoint(bias_folders["1"]))
    repository.poll()
    assert repository.not_ready_reason() == ""
    assert list((tmp_path / LOADING).iterdir()) == []


def test_a_worker_state_refused_by_a_full_disk_is_written_later(tmp_path, repository, caplog):
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
