"""Tests of the incremental training of the digits network."""

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from tests.support.refusals import mentions

EPOCHS = 6


@pytest.fixture
def fitting():
    pytest.importorskip("torch")
    from projects.digits_cnn import fitting

    return fitting


@pytest.fixture
def images(fitting):
    """Return training images, test images, training digits and test digits."""
    from projects.digits_cnn.train import load_images

    return load_images(seed=7)


@pytest.fixture
def base(tmp_path, new_mlflow):
    """Return a registered version whose run has kept no weights."""
    client = MlflowClient()
    run = client.create_run(client.create_experiment("digits"))
    client.create_registered_model("digits-cnn")
    client.create_model_version("digits-cnn", tmp_path.as_uri(), run.info.run_id)
    return "models:/digits-cnn/1"


def moved(images):
    """Return the images moved by two pixels, as a moved camera takes them."""
    return np.roll(images, 2, axis=3)


@pytest.mark.long
def test_base_weights_are_fine_tuned(fitting, images, base):
    train_images, test_images, train_digits, test_digits = images
    built_in = (train_images, train_digits)
    with mlflow.start_run(MlflowClient().get_model_version("digits-cnn", "1").run_id):
        fitting.save_weights(fitting.fit(*built_in, EPOCHS, seed=7))
    new = (moved(train_images[:400]), train_digits[:400])
    network, way = fitting.fit_incremental(built_in, new, base, epochs=4 * EPOCHS, seed=7)
    assert way.split(", ") == ["fine-tuning", "6 passes", "800 built-in images"]
    # The accuracy was 0.16 before the training.
    assert fitting.accuracy(network, moved(test_images), test_digits) > 0.6
    assert fitting.accuracy(network, test_images, test_digits) > 0.9


@pytest.mark.long
def test_base_without_weights_uses_replay(fitting, images, base):
    train_images, _, train_digits, _ = images
    new = (train_images[:50], train_digits[:50])
    _, way = fitting.fit_incremental((train_images, train_digits), new, base, epochs=1, seed=7)
    assert mentions(way, "sampled replay", "100 built-in images")
