"""The disagreement between shadows and answers."""

from dataclasses import replace

import numpy as np
import pytest

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.watch.kinds.shadow import judge
from tests.support.models import graph_tensor
from tests.support.refusals import mentions
from tests.watch.kinds.conftest import finding

from .conftest import CLASSIFIER, REGRESSOR

AGREE = {"kind": "shadow", "require": ["disagreement<=0.05"], "min_rows": 100}


def ids(first, count):
    return [f"id-{number}" for number in range(first, first + count)]


def answer_both(endpoint, answers, others, variant="candidate", copies=None, **columns):
    """Write answered rows, and shadow rows of version 2 for the first `copies` rows, in
    another order.
    """
    rows = len(answers)
    endpoint.answer(
        {
            "_prediction_id": ids(0, rows),
            "_shadow": np.zeros(rows, bool),
            "prediction": answers,
            **columns,
        }
    )
    order = np.random.default_rng(9).permutation(rows if copies is None else copies)
    endpoint.answer(
        {
            "_prediction_id": [f"id-{row}" for row in order],
            "_shadow": np.ones(len(order), bool),
            "_variant": [variant] * len(order),
            "prediction": np.asarray(others)[order],
        },
        version="2",
    )


@pytest.mark.parametrize(("wrong", "state"), [(10, "kept"), (100, "violated")])
def test_rows_are_joined_by_prediction_id(endpoint, wrong, state):
    endpoint.serve(CLASSIFIER, v2=CLASSIFIER)
    answers = np.arange(600) % 2
    answer_both(
        endpoint, answers, np.where(np.arange(600) % (600 // wrong) == 0, 1 - answers, answers)
    )

    judged = judge(endpoint.ask(**AGREE))

    disagreement = finding(judged, "disagreement")
    assert judged.state == state
    assert disagreement.value == pytest.approx(wrong / 600)
    assert judged.version == "1"
    assert judged.rows == 600
    assert judged.figures["disagreement/candidate"] == disagreement.value
    assert any(
        mentions(note, "candidate", "flight-delay version 2", "600 of 600") for note in judged.notes
    )


def test_nearly_equal_numbers_agree(endpoint):
    endpoint.serve(REGRESSOR, v2=REGRESSOR)
    numbers = np.random.default_rng(0).normal(100, 10, 400)
    answer_both(endpoint, numbers, numbers * np.where(np.arange(400) < 40, 1.02, 1.005))

    assert finding(judge(endpoint.ask(**AGREE)), "disagreement").value == 0.1


@pytest.mark.long
@pytest.mark.parametrize(
    ("meaning", "state"),
    [(CLASSIFIER, "kept"), (REGRESSOR, "not judged"), (None, "not judged")],
    ids=["labels", "numbers", "a version that is gone"],
)
def test_only_hashes_of_labels_are_compared(endpoint, meaning, state):
    if meaning is not None:
        endpoint.serve(meaning, v2=meaning)
    hashes = np.array([f"{row:032x}" for row in range(300)])
    answer_both(endpoint, hashes, hashes if meaning is CLASSIFIER else hashes[::-1])

    judged = judge(replace(endpoint.ask(**AGREE), capture=CaptureSpec(mask=("prediction",))))

    assert judged.state == state


def test_shadows_are_judged_separately(endpoint):
    endpoint.serve(CLASSIFIER, v2=CLASSIFIER)
    answers = np.arange(300) % 2
    answer_both(endpoint, answers, answers, "calm")
    answer_both(endpoint, answers, 1 - answers, "wild")
    require = ["disagreement(calm)<=0.05", "disagreement(gone)<=0.1"]

    each = judge(endpoint.ask(**AGREE))
    required = judge(endpoint.ask(**(AGREE | {"require": require})))

    assert finding(each, "disagreement(calm)").state == "kept"
    assert finding(each, "disagreement(wild)").state == "violated"
    assert finding(required, "disagreement(calm)").state == "kept"
    assert required.state == "cannot tell"
    assert "shadow 'gone' has computed no row" in finding(required, "disagreement(gone)").reason


def test_segments_and_uncopied_rows(endpoint):
    endpoint.serve(CLASSIFIER, v2=CLASSIFIER)
    answers = np.arange(600) % 2
    carriers = np.array(["UA", "AA"] * 300, dtype=object)
    answer_both(
        endpoint,
        answers,
        np.where(carriers == "UA", 1 - answers, answers),
        copies=400,
        carrier=carriers,
    )

    judged = judge(endpoint.ask(**(AGREE | {"segment_by": ["carrier"]})))

    assert finding(judged, "disagreement", segment="carrier=UA").value == 1
    assert finding(judged, "disagreement", segment="carrier=AA").state == "kept"
    assert judged.figures["copied_share/candidate"] == pytest.approx(400 / 600)


def test_incomparable_answers_are_noted(endpoint):
    vectors = REGRESSOR | {"outputs": [graph_tensor("x", "float32", -1, 2, role="values")]}
    endpoint.serve(REGRESSOR, v2=vectors | {"prediction": []})
    rows = {"_prediction_id": ids(0, 200)}
    endpoint.answer(rows | {"_shadow": [False] * 200, "prediction": np.ones(200)})
    endpoint.answer(rows | {"_shadow": [True] * 200, "output.x": [[1.0, 2.0]] * 200}, version="2")

    judged = judge(endpoint.ask(**AGREE))

    assert judged.state == "not judged"
    assert any(mentions(note, "200 rows", "version 1", "shadow") for note in judged.notes)


def test_missing_rows_or_shadows_are_named(endpoint):
    endpoint.serve(CLASSIFIER)
    assert mentions(judge(endpoint.ask(**AGREE)).reason, "no rows")

    endpoint.answer({"prediction": np.arange(150) % 2})
    assert mentions(judge(endpoint.ask(**AGREE)).reason, "no shadow")


def test_both_sides_sample_the_same_rows(endpoint, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.watch.kinds.shadow.MAX_ROWS", 250)
    endpoint.serve(CLASSIFIER, v2=CLASSIFIER)
    answers = np.arange(1_000) % 2
    answer_both(endpoint, answers, np.where(np.arange(1_000) % 10 == 0, 1 - answers, answers))

    judged = judge(endpoint.ask(**AGREE))

    # The hash of an id chooses 125 rows of each side, more or less.
    assert 90 <= judged.rows == judged.figures["compared_rows/candidate"] <= 250
    assert finding(judged, "disagreement").value == pytest.approx(0.1, abs=0.05)
    assert any("of 2,000 rows, including shadow rows, " in note for note in judged.notes)
