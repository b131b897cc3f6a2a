"""The checks of the gate, one module each: plain functions of what they look at, each with a `CheckResult`."""
