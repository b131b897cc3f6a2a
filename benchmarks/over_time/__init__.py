"""Parts of `benchmarks/verdicts.py`: each module measures one group of targets."""
