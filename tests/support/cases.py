"""Cases of `parametrize`."""

import pytest


def long_case(*values, **options):
    """Return a case that only the long tests run."""
    return pytest.param(*values, **options, marks=pytest.mark.long)
