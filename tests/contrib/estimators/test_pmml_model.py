"""A PMML model answers each row independently, with the types of the file's fields."""

import numpy as np
import pandas as pd
import pytest

from tests.support.pmml import DELAY, needs_java, write_pmml
from tests.support.refusals import refused

HOURS = DELAY[DELAY.index('<OutputField name="hours"') : DELAY.index("</Output>")]
INTEGER = DELAY.replace(HOURS, "").replace(
    'feature="predictedValue" optype="continuous" dataType="double"',
    'feature="predictedValue" dataType="integer"',
)


@pytest.mark.long
@needs_java
def test_missing_value_keeps_the_types(tmp_path):
    from mlflow_deploy_plugin.contrib.estimators.pmml_model import PmmlModel

    model = PmmlModel(str(write_pmml(tmp_path, INTEGER)))
    rows = pd.DataFrame({"carrier": ["UA", "AA", None], "distance": [100, np.nan, 100]})
    answers = model.predict(None, rows)

    assert answers["minutes"].dtype == "Int64"
    assert answers["minutes"].isna().tolist() == [False, True, False]
    assert (
        model.predict(None, rows[:1])["minutes"].tolist() == answers["minutes"][:1].tolist() == [8]
    )
    with refused(ValueError, "row 2:", "carrier", "ZZ"):
        model.predict(None, rows.assign(carrier=["UA", "AA", "ZZ"]))
