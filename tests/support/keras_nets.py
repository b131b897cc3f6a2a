"""Small Keras nets. Importing Keras takes seconds, so a test imports this module in its
fixture.
"""

import keras
from keras import layers

from tests.support.random_rows import normal_rows


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, activation="relu")
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, rows, training=False):
        return self.head(self.drop(self.hidden(rows), training=training))


class TwoSubclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows):
        return self.head(rows["left"]) + rows["right"]


class NamedSubclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, left, right):
        return self.head(left) + right


def _sequential(shape, *parts, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def two_inputs():
    left = keras.Input((4,), name="left")
    right = keras.Input((3,), name="right")
    both = layers.Concatenate()([layers.Dense(5, activation="relu")(left), right])
    return keras.Model(
        [left, right], [layers.Dense(2, name="mean")(both), layers.Dense(1, name="spread")(both)]
    )


def normalised():
    scaled = layers.Normalization()
    scaled.adapt(normal_rows(50, 4) * 7 + 3)
    return _sequential((4,), scaled, layers.Dense(2))


def masked():
    return _sequential(
        (6,),
        layers.Embedding(20, 4, mask_zero=True),
        layers.LSTM(5),
        layers.Dense(2),
        dtype="int64",
    )


class OfAMapping(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows):
        return self.head(rows["left"])


def of_mappings():
    inputs = {"right": keras.Input((3,), name="right"), "left": keras.Input((4,), name="left")}
    return keras.Model(
        inputs,
        {
            "twice": layers.Dense(2)(inputs["left"]),
            "both": layers.Concatenate()([*inputs.values()]),
        },
    )
