"""The message of an error, for the tests of wording."""

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError


def message_of(cause):
    """Return the message of the error that a call raises."""
    with pytest.raises(OnnxserveError) as refused:
        cause()
    return refused.value.message
