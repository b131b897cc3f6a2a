"""Tests of the accuracy of the digits network. Logging is tested with the flavor."""

import pytest

pytest.importorskip("torch")

from projects.digits_cnn.fitting import accuracy, fit
from projects.digits_cnn.train import load_images


@pytest.mark.long
def test_the_network_reads_the_test_digits():
    train_images, test_images, train_digits, test_digits = load_images(seed=7)
    assert train_images.shape[1:] == (1, 8, 8)
    network = fit(train_images, train_digits, epochs=12, seed=7)
    assert accuracy(network, test_images, test_digits) >= 0.95
