"""All cases of the corpus."""

from tests.server.corpus import bodies, heads, tables, values
from tests.server.corpus.case import AnyCase

CASES: list[AnyCase] = [*heads.CASES, *bodies.CASES, *values.CASES, *tables.CASES]
