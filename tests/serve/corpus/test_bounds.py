"""The corpus proves each bound: without the bound, at least one case fails."""

import importlib
import re
from collections.abc import Callable
from functools import partial
from itertools import chain, product

import pytest

from tests.serve.corpus import limits, slow
from tests.serve.corpus.bounds import BOUNDS
from tests.serve.corpus.cases import CASES
from tests.serve.corpus.wire import Neglected, Refused

REMOVALS = list(
    chain.from_iterable(product((name,), removals) for name, removals in BOUNDS.items())
)
_SLOW_SECONDS = 8.0
_CONFIG = """
import importlib, re
from mlflow_deploy_plugin.serve.gunicorn_conf import *

def post_fork(arbiter, worker):
    for name, text in {patched!r}.items():
        parts = name.split(".")
        owner = importlib.import_module(".".join(parts[: -1 - parts[-2][0].isupper()]))
        owner = getattr(owner, parts[-2]) if parts[-2][0].isupper() else owner
        setattr(owner, parts[-1], eval(text, {{"re": re, "original": getattr(owner, parts[-1])}}))
"""


def test_every_case_names_a_bound_and_every_bound_has_cases():
    crowds = [crowd.bound for _, crowd, _ in limits.CASES]
    assert {case.bound for case in [*CASES, *slow.CASES]} | set(crowds) == BOUNDS.keys()
    assert sum(len(case.on) for case in CASES) > 150
    assert len({case.name for case in CASES}) == len(CASES)


def fails(attempts):
    """Return True if a case is refused in another way than expected; valid requests do
    not count.
    """
    for attempt in attempts:
        try:
            attempt()
        except Neglected:
            continue
        except Refused:
            return True
    return False


def removals(*of):
    """Parametrize a test by these removals."""
    params = [
        pytest.param(*entry, id=f"{entry[0]}-{entry[1].of}")
        for entry in REMOVALS
        if entry[1].of in of
    ]
    return pytest.mark.parametrize(("name", "removal"), params)


@removals("answer", "wsgi")
def test_without_a_bound_of_the_application_one_of_its_cases_fails(
    wsgi, monkeypatch, name, removal
):
    for target, text in removal.patched.items():
        module, _, attribute = target.rpartition(".")
        owner = importlib.import_module(module)
        value = eval(text, {"re": re, "original": getattr(owner, attribute)})
        monkeypatch.setattr(owner, attribute, value)
    cases = [case for case in CASES if case.bound == name]
    attempts = [partial(wsgi.check, case, route) for case in cases for route in case.on]
    assert fails(attempts)


@pytest.mark.long
@removals("fast")
def test_without_a_bound_of_the_worker_one_of_its_cases_fails(start, tmp_path, name, removal):
    config = tmp_path / "without.py"
    config.write_text(_CONFIG.format(patched=dict(removal.patched)))
    crowds = [
        (where, crowd, routes) for where, crowd, routes in limits.CASES if crowd.bound == name
    ]
    fields = {**(limits.NARROW[crowds[0][0]] if crowds else {}), **removal.fields}
    with start(config, **fields) as tried:
        attempts: list[Callable[[], None]] = []
        for _, crowd, routes in crowds:
            attempts += [partial(crowd.try_on, tried.wire, route) for route in routes]
        attempts += [
            partial(tried.wire.check, case, case.on[0]) for case in CASES if case.bound == name
        ]
        attempts += [
            partial(client.try_on, tried.wire, client.on[0], _SLOW_SECONDS)
            for client in slow.CASES
            if client.bound == name
        ]
        assert attempts
        assert fails(attempts)
