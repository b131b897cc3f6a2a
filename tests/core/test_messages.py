"""The parts of messages: foreign texts, suggestions, and lists of names."""

import time

import pytest

from mlflow_deploy_plugin.core.messages import (
    close_matches,
    closest_match,
    did_you_mean,
    hint_for_missing,
    join_names,
    one_line,
)
from tests.support.refusals import mentions


@pytest.mark.parametrize(
    ("name", "names", "closest"),
    [
        ("dep_tme", ["arr_time", "dep_time", "carrier"], "dep_time"),
        ("DEP_TIME", ["arr_time", "dep_time"], "dep_time"),
        ("Prot", ["server.port", "sort"], "server.port"),
        ("xyz", ["dep_time"], None),
        ("silence", ["size"], None),
    ],
)
def test_only_near_name_is_suggested(name, names, closest):
    assert closest_match(name, names) == closest


def test_closest_name_is_suggested():
    assert (
        close_matches("/invocation", ["/invocations", "/endpoints/NAME/invocations", "/ping"], 3)[0]
        == "/invocations"
    )
    assert mentions(did_you_mean("dep_tme", ["dep_time"]), "'dep_time'")


@pytest.mark.parametrize(
    ("missing", "unknown", "told"),
    [
        (["dep_time"], ["dep_tme"], "; 'dep_tme' is not known: did you mean 'dep_time'?"),
        (
            ["hour", "dep_time"],
            ["x", "dep_tme"],
            "; 'dep_tme' is not known: did you mean 'dep_time'?",
        ),
        (["dep_time"], ["xyz"], "; 'xyz' is not known"),
        (["dep_time"], [], ""),
    ],
)
def test_hint_names_unknown_field(missing, unknown, told):
    assert hint_for_missing(missing, unknown) == told


def test_long_list_starts_with_closest_name():
    names = [f"column {letter}" for letter in "abcdefghijk"] + ["dep_time"]
    assert join_names(names[:10]) == ", ".join(names[:10])
    assert join_names(names, "dep_tme").startswith("dep_time, column a, ")
    assert join_names(names, "dep_tme").endswith(" and 2 more")


def test_hostile_names_are_handled_fast():
    began = time.process_time()
    hint_for_missing(
        (f"wanted {number}" for number in range(5000)), ("x" * 1_000_000 for _ in range(100_000))
    )
    closest_match("x" * 10_000_000, (f"known {number}" for number in range(1_000_000)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "most", "line"),
    [
        ("it\n  fails", None, "it fails"),
        (ValueError("a\tlong\nmessage"), 6, "a long"),
        (MemoryError(), 300, "MemoryError"),
        ("", None, ""),
        ("\x1b[1mkeras says\x1b[0m", None, "keras says"),
    ],
)
def test_foreign_message_is_one_line(text, most, line):
    assert one_line(text, most) == line
