"""Tests of the names of people: spellings that belong to one person, and unusable
names.
"""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.store.people import name_refusal, person_key

INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u17b4\u180b\u180e\u200b"
    "\u200c\u200d\u200f\u202e\u2060\u2065\u2069\u3164"
)
INVISIBLE += "\ufe0f\ufeff\uffa0\ufff0\U0001bca0\U0001d173\U000e0001\U000e0041\U000e0fff\u0600"
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("reviewer", "reviewer "),
        ("reviewer", "reviewer\u00a0"),
        ("reviewer", "\u3000reviewer\u2003"),
        ("reviewer", "reviewer\t"),
        ("reviewer", "reviewer\x00"),
        ("reviewer", "revi\x07ewer"),
        ("reviewer", "reviewer\x85"),
        ("reviewer", "reviewer\u2800"),
        ("ann lee", "ann\u2800lee"),
        ("ada lovelace", "ada  lovelace"),
        ("ada lovelace", "ada\u2009\u3000lovelace"),
        ("ada lovelace", "ada\tlovelace"),
        ("andré", "andre\u0301"),
        ("andré", "andre\u200d\u0301"),
        ("straße", "STRASSE"),
    ],
)
def test_spellings_of_a_name_are_one_person(one, other):
    assert person_key(one) == person_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann alee", "anna lee"),
        ("andré", "andre"),
        ("reviewer", "CORP\\reviewer"),
        ("reviewer", "reviewer@corp.example"),
        ("reviewer", "revіewer"),  # The fourth letter of the second name is Cyrillic.
        ("mlà", "mlå"),
    ],
)
def test_other_names_are_other_people(one, other):
    assert person_key(one) != person_key(other)


@settings(max_examples=50)
@given(NAMES)
def test_person_key_is_idempotent(name):
    assert person_key(person_key(name)) == person_key(name)


@given(NAMES, st.sampled_from(INVISIBLE), st.integers(0, 20))
def test_invisible_characters_do_not_change_key(name, character, place):
    assert person_key(name[:place] + character + name[place:]) == person_key(name)


@given(NAMES, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_unicode_normalization_does_not_change_key(name, form):
    normal = unicodedata.normalize(form, name)  # type: ignore[arg-type]
    assert person_key(normal) == person_key(name)


@settings(max_examples=50)
@given(NAMES)
def test_case_and_spaces_do_not_change_key(name):
    folded = unicodedata.normalize(
        "NFD", name
    ).casefold()  # Unicode folds the case of decomposed letters.
    assert person_key(f" {folded}\u00a0") == person_key(name)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("reviewer\t", "control"),
        ("re\x00viewer", "control"),
        ("reviewer\x85", "control"),
        ("re\udc80viewer", "control"),
        ("\u200b\u00ad ", "visible"),
        ("", "visible"),
        ("r" * 256, "256"),
        ("anonymous@10.0.0.7", "login"),
        ("ａnony\u200bMOUS@10.0.0.7", "login"),
    ],
)
def test_unusable_name_is_refused(name, named):
    assert named in name_refusal(name)


@pytest.mark.parametrize(
    "name", ["reviewer", "Zoë d'Été-Ångström", "李 明", "r" * 255, "eva@corp.example", "anonymous"]
)
def test_usual_name_is_accepted(name):
    assert name_refusal(name) == ""
