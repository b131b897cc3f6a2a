"""Rows as they were sent."""

import pytest

from mlflow_deploy_plugin.core.errors import SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.schemas.sent_schema import SentSchema


def test_records_without_common_columns_are_refused():
    """100 KB become 64 million values."""
    with pytest.raises(SchemaMismatch, match="values are missing"):
        SentSchema((), (), ()).from_records([{f"c{row}": 1} for row in range(8_000)])
