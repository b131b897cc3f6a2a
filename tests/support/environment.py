"""A program that prints its environment."""

import os

for name, value in os.environ.items():
    print(f"{name}={value}")  # noqa: T201
