"""A record as read, and the balance of the books."""

from service.jobs import Books, job_of


def test_books_balance_or_do_not() -> None:
    assert Books(7, 1, 2, 3, 1).balanced
    assert not Books(7, 1, 2, 3, 2).balanced


def test_a_record_is_read_as_it_was_written() -> None:
    flat = ["state", "running", "request", "{}", "step", "4", "error_code", ""]
    job = job_of("acme/v", ["1000", "-1", "250", "0", "0", flat])
    assert job is not None
    assert (job.id, job.state, job.number("step"), job.mean_ms) == ("v", "running", 4, 250)
    assert (job.number("never"), job.text("error_code"), job.ended) == (0, None, False)


def test_what_was_spent_counts_the_start_in_hand() -> None:
    flat = ["state", "running", "request", "{}", "spent_ms", "300", "claimed_ms", "800"]
    job = job_of("acme/v", ["1000", "-1", "250", "0", "0", flat])
    assert job is not None and job.spent_s == 0.5
    flat[1] = "completed"
    job = job_of("acme/v", ["1000", "-1", "250", "0", "0", flat])
    assert job is not None and job.spent_s == 0.3


def test_no_record_is_no_job() -> None:
    assert job_of("acme/v", ["1000", "-1", "", "0", "0", []]) is None
