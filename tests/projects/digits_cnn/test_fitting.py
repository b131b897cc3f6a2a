"""Tests of the incremental training of the digits network."""

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

pytest.importorskip("torch")

from projects.digits_cnn.fitting import (
    WEIGHTS,
    accuracy,
    fit,
    fit_incremental,
    save_weights,
)
from projects.digits_cnn.train import load_images
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

IMAGES, TEST_IMAGES, DIGITS, TEST_DIGITS = load_images(seed=7)
EPOCHS = 6


@pytest.fixture
def base(tmp_path, new_database, monkeypatch):
    """Return a registered version whose run has kept its weights."""
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        with mlflow.start_run(experiment_id=client.create_experiment("digits")) as run:
            save_weights(fit(IMAGES, DIGITS, EPOCHS, seed=7))
        client.create_registered_model("digits-cnn")
        client.create_model_version("digits-cnn", tmp_path.as_uri(), run.info.run_id)
        yield "models:/digits-cnn/1"


def moved(images):
    """Return the images moved by two pixels, as a moved camera takes them."""
    return np.roll(images, 2, axis=3)


@pytest.mark.long
def test_base_weights_are_fine_tuned(base):
    new = (moved(IMAGES[:400]), DIGITS[:400])
    network, way = fit_incremental((IMAGES, DIGITS), new, base, epochs=4 * EPOCHS, seed=7)
    assert way.split(", ") == ["fine-tuning", "6 passes", "800 built-in images"]
    # The accuracy was 0.16 before the training.
    assert accuracy(network, moved(TEST_IMAGES), TEST_DIGITS) > 0.6
    assert accuracy(network, TEST_IMAGES, TEST_DIGITS) > 0.9


def test_base_without_weights_uses_replay(base, monkeypatch):
    monkeypatch.setattr("projects.digits_cnn.fitting.WEIGHTS", f"other-{WEIGHTS}")
    _, way = fit_incremental((IMAGES, DIGITS), (IMAGES[:50], DIGITS[:50]), base, epochs=1, seed=7)
    assert mentions(way, "sampled replay", "100 built-in images")
