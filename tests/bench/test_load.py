"""The small form: the figures are not judged here, only that they are of real answers."""

import pytest

from bench.load import run


@pytest.mark.slow
def test_every_answer_under_load_is_one_that_may_come() -> None:
    found = run(rounds=1, seconds=0.5, connections=8, crowd=40)
    assert set(found["submits_per_s"]["statuses"]) == {202}
    assert set(found["polls_per_s"]["statuses"]) == {200}
    assert set(found["crowd"]) <= {202, 429, 503} and found["crowd"]
    assert found["submits_to_bare"] > 0 and found["polls_to_bare"] > 0
