"""All cases of the corpus."""

from tests.serve.corpus import bodies, heads, tables, values
from tests.serve.corpus.case import AnyCase

CASES: list[AnyCase] = [*heads.CASES, *bodies.CASES, *values.CASES, *tables.CASES]
