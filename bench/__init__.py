"""Benches: each prints its figures, with spread, and ends with one line of JSON."""

import engine  # noqa: F401  before the libraries that it quiets
