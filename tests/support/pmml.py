"""A small PMML file, and the mark of tests that need Java."""

import shutil

import pytest

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")

DELAY = """<?xml version="1.0"?>
<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4">
  <Header/>
  <DataDictionary>
    <DataField name="carrier" optype="categorical" dataType="string">\
<Value value="AA"/><Value value="UA"/></DataField>
    <DataField name="distance" optype="continuous" dataType="double"/>
    <DataField name="delay" optype="continuous" dataType="double"/>
  </DataDictionary>
  <RegressionModel functionName="regression">
    <MiningSchema>
      <MiningField name="carrier" invalidValueTreatment="returnInvalid"/>
      <MiningField name="distance"/>
      <MiningField name="delay" usageType="target"/>
    </MiningSchema>
    <Output>
      <OutputField name="minutes" feature="predictedValue" optype="continuous" dataType="double"/>
      <OutputField name="hours" feature="transformedValue" optype="continuous" dataType="double">
        <Apply function="/"><FieldRef field="minutes"/><Constant>60</Constant></Apply>
      </OutputField>
    </Output>
    <RegressionTable intercept="2">
      <NumericPredictor name="distance" coefficient="0.01"/>
      <CategoricalPredictor name="carrier" value="UA" coefficient="5"/>
    </RegressionTable>
  </RegressionModel>
</PMML>
"""
"""delay = 2 + 0.01 distance, and 5 minutes more for the carrier UA. Carriers other than
AA and UA are refused.
"""


def write_pmml(folder, text=DELAY):
    path = folder / "delay.pmml"
    path.write_text(text)
    return path
