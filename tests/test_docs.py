"""The pages that are made from the code are those the code would make."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_page_is_the_one_that_the_code_makes() -> None:
    make_reference = runpy.run_path(str(DOCS / "make_reference.py"))
    assert (DOCS / "reference.md").read_text() == make_reference["reference"](), "run python docs/make_reference.py"
