import itertools
import os
import time

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import NotFound, RegistryRefused, RegistryUnavailable
from mlflow_deploy_plugin.core.registry import resolution
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import selected_models
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import SPEC, read_state, served_file
from mlflow_deploy_plugin.core.statedir.models import (
    ServedModel,
    WantedEndpoint,
    WantedVariant,
)
from mlflow_deploy_plugin.serve.agent import model_list
from mlflow_deploy_plugin.serve.agent.fetch import ModelCache
from mlflow_deploy_plugin.serve.agent.model_list import ModelList
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy
from tests.support.fake_registry import AtOnce
from tests.support.refusals import refused

CHAMPIONS = "models:/team-*@champion"


@pytest.fixture
def client(new_mlflow):
    """Register three models with two versions: the first is champion of two models, and
    in Production; the second has the tag region=eu.
    """
    client = MlflowClient()
    for name in ("team-a", "team-b", "other"):
        client.create_registered_model(name)
        client.create_model_version(name, ".", tags={"region": "us"})
        client.create_model_version(name, ".", tags={"region": "eu"})
        client.transition_model_version_stage(name, "1", "Production")
        if name != "team-b":
            client.set_registered_model_alias(name, "champion", "1")
    return client


@pytest.mark.parametrize(
    ("uri", "selected"),
    [
        ("models:/*@champion", {"team-a": "1", "other": "1"}),
        (CHAMPIONS, {"team-a": "1"}),
        ("models:/team-*/production", {"team-a": "1", "team-b": "1"}),
        ("models:/*/tag:region=eu", {"team-a": "2", "team-b": "2", "other": "2"}),
        ("models:/*@nobody", {}),
    ],
)
def test_models_of_a_pattern(client, uri, selected, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.core.registry.resolution._PAGE", 1)
    *_, marks = selected_models(parse_model_uri(uri))
    assert {name: mark.split()[0] for name, mark in marks.items()} == selected


def test_slow_registry_is_asked_for_shorter_pages(client, monkeypatch):
    search = MlflowClient.search_registered_models
    sizes = []

    def search_slowly(self, max_results, page_token):
        sizes.append(max_results)
        if max_results > resolution._SHORT_PAGE:
            raise RegistryUnavailable("no answer in time")
        return search(self, max_results=max_results, page_token=page_token)

    monkeypatch.setattr(MlflowClient, "search_registered_models", search_slowly)
    monkeypatch.setattr(resolution, "_SHORT_PAGE", 2)
    *_, marks = selected_models(parse_model_uri(CHAMPIONS))
    assert marks.keys() == {"team-a"}
    assert sizes == [resolution._PAGE, 2, 2]


def selecting(marks):
    """Return the listing of a registry that has these marks, or raises them."""

    def select(pattern, refusal):
        if isinstance(marks, Exception):
            raise marks
        return iter([dict(marks)])

    return select


def new_list(folder, clock, listed=None, **config):
    spec = apply_config(new_endpoint("registry", CHAMPIONS), config)
    policy = PollPolicy(30.0, True, clock)
    return ModelList(folder, AtOnce(), policy, spec, parse_model_uri(CHAMPIONS), listed)


def make_list(folder, marks, listed=None, **config):
    """Return a list whose registry has these marks (or raises them), on a clock that
    advances a day per look. `listed` is the list of an earlier start.
    """
    days = itertools.count(0.0, 86_400.0)
    models = new_list(folder, lambda: next(days), listed, **config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_list, "selected_models", selecting(marks))
        models.round(is_covered=False)
        models.round(is_covered=False)
    return models


def test_marks_change_with_version_and_requirements(tmp_path):
    seen = set()
    for mark, config in (("1 5", {}), ("2 5", {}), ("2 5", {"require": "gate=passed"})):
        listed = make_list(tmp_path, {"team-a": mark}, **config).listed
        assert listed is not None
        assert listed.models["team-a"].startswith(mark)
        seen.add(listed.models["team-a"])
    assert len(seen) == 3


def test_list_is_kept_while_the_registry_is_down(tmp_path):
    earlier = make_list(tmp_path, {"team-a": "1 5"}).listed
    models = make_list(tmp_path, RegistryUnavailable("down"), earlier)
    assert "down" in models.error
    assert models.spec("team-a").variants["registry"].model == "models:/team-a@champion"
    with refused(NotFound, "team-b"):
        models.spec("team-b")


def test_restarted_agent_keeps_only_a_list_of_its_spec(case, monkeypatch):
    """The registry is down after the first start."""
    down = RegistryUnavailable("down")
    for marks, require, is_fatal in (
        ({"team-a": "1 5 5"}, "", False),
        (down, "", False),
        (down, "require: gate=passed", True),
    ):
        monkeypatch.setattr(model_list, "selected_models", selecting(marks))
        (case.state_dir / SPEC).write_text(
            f"name: r\nvariants: {{r: {{model: '{CHAMPIONS}'}}}}\n{require}\n"
        )
        assert case.follower().round().fatal is is_fatal
        assert case.wanted.listed.models.keys() == {"team-a"}


@pytest.mark.parametrize(
    ("limit", "ages", "left"),
    [
        ("2MiB", (70, 80), "ac"),
        ("1MiB", (70, 80), "c"),
        ("1MiB", (59, 80), "ac"),  # The first model is in a worker's memory.
        ("1KiB", (1, 1), "abc"),
    ],
)
def test_models_outside_memory_leave_a_full_disk(tmp_path, limit, ages, left):
    cache = ModelCache(tmp_path / "cache", tmp_path)
    for name, age in zip("abc", (*ages, 0), strict=True):
        folder = tmp_path / "cache" / "models" / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(bytes(1024 * 1024 - 1))
        want = WantedVariant(model_uri="", model=name, version="1", folder=folder)
        models = make_list(tmp_path, {}, **{"server.model_disk": limit})
        models.write(name, "1 5", WantedEndpoint(variants={"registry": want}))
        moment = time.time() - age
        os.utime(served_file(tmp_path, name), (moment, moment))
    cache.prune(time.time())
    assert "".join(sorted(folder.name for folder in (tmp_path / "cache/models").iterdir())) == left
    assert "".join(name for name in "abc" if served_file(tmp_path, name).exists()) == left


def test_recreated_model_has_no_previous_version(client, tmp_path):
    models = make_list(tmp_path, {})
    for version in ("1", "2"):
        *_, marks = selected_models(parse_model_uri(CHAMPIONS))
        want = WantedVariant(model_uri="", model="team-a", version=version, folder=tmp_path)
        models.write("team-a", marks["team-a"], WantedEndpoint(variants={"registry": want}))
        client.delete_registered_model("team-a")
        client.create_registered_model("team-a")
        client.create_model_version("team-a", ".")
        client.set_registered_model_alias("team-a", "champion", "1")
    saved = read_state(served_file(tmp_path, "team-a"), ServedModel)
    assert saved is not None
    assert saved.previous is None


def test_failed_listing_is_repeated_soon(tmp_path, clock, monkeypatch):
    answers = iter([{"team-a": "1 5"}, None, {"team-a": "2 6"}])

    def select(pattern, refusal):
        answer = next(answers)
        if answer is None:
            raise RegistryUnavailable("down")
        return iter([answer])

    monkeypatch.setattr(model_list, "selected_models", select)
    models = new_list(tmp_path, clock)
    for error in ("", "down", ""):
        models.round(is_covered=True)
        assert error in models.error
        models.is_stale = error == ""
        clock.now += 40
    assert models.listed is not None
    assert models.listed.models["team-a"].startswith("2 6")


@pytest.mark.parametrize(
    ("seconds", "error", "count"),
    [
        (5, RegistryUnavailable("no answer in time"), 2),
        (0, RegistryUnavailable("connection refused"), 1),
        (5, RegistryRefused("no permission"), 1),
        (61, RegistryUnavailable("no answer in time"), 1),
    ],
)
def test_start_waits_for_a_busy_registry(tmp_path, clock, monkeypatch, seconds, error, count):
    listings = []

    def select(pattern, refusal):
        listings.append(pattern)
        if len(listings) == 1:
            clock.now += seconds
            raise error
        return iter([{"team-a": "1 5"}])

    monkeypatch.setattr(model_list, "selected_models", select)
    models = new_list(tmp_path, clock)
    models.round(is_covered=False)
    assert len(listings) == count
    assert (models.listed is not None) == (count == 2)


def test_previous_version_of_a_model_is_kept(tmp_path):
    models = make_list(tmp_path, {"../a": "1 5"})
    for version in ("1", "1", "2"):
        want = WantedVariant(model_uri="", model="../a", version=version, folder=tmp_path / version)
        models.write("../a", version, WantedEndpoint(variants={"registry": want}))
    file = served_file(tmp_path, "../a")
    saved = read_state(file, ServedModel)
    assert saved is not None
    assert saved.previous is not None
    assert saved.previous.variants["registry"].version == "1"
    models.refuse({tmp_path / "2"}, "it ends its worker")
    saved = read_state(file, ServedModel)
    assert saved is not None
    assert saved.endpoint.errors == {"registry": "it ends its worker"}
    make_list(tmp_path, {"team-a": "1 5"}, models.listed)
    assert not file.exists()
