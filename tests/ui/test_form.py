"""Forms that make no sense."""

from typing import Any

import pytest

from tests.support.console import PAGE, form, open_page


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"weight:champion": "much"}, 400, "the weight of champion is &#39;much&#39;; a whole number"),
        ({"weight:champion": "101"}, 400, "a whole number from 0 to 100 is expected"),
        ({"weight:champion": "0"}, 400, "give at least one variant a weight"),
        ({"endpoint": "nobody"}, 404, "there is no endpoint &#39;nobody&#39;"),
        ({"action": "explode"}, 400, "there is no action &#39;explode&#39;"),
        ({"action": "promote", "model": "m", "version": "1", "to": "Mars"}, 400, "no stage and no @alias"),
        ({"action": "gate", "model": "m", "version": "one"}, 400, "the number of its version"),
        ({"why": "x" * 501}, 400, "at most 500 are kept"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    mlflow_app: Any, endpoint: str, changed: dict[str, str], status: int, said: str
) -> None:
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data={**form(endpoint, token), **changed})
    assert answer.status_code == status
    assert said in answer.get_data(as_text=True)
