"""The checks of the gate, one module each: plain functions of their inputs, each with a `CheckResult`."""
