"""A small share of the made-up requests, at a real gateway."""

import pytest

from bench.fuzz import run, summary

FAILED = """
API Operations:
  Selected: 15/16
  Tested: 15
Test cases:
  141 generated, 10 found 11 unique failures
"""


@pytest.mark.slow
def test_no_request_breaks_the_gateway() -> None:
    found = run(examples=12, seed=3, phases="fuzzing", timeout_s=5)
    assert found["failures"] == 0
    assert found["cases"] > 200 and found["operations"] > 10


def test_a_failure_is_counted() -> None:
    assert summary(FAILED) == {"cases": 141, "failures": 10, "operations": 15}


def test_a_run_that_never_began_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="no summary"):
        summary("Connection refused")
