"""Benches: each prints its figures, with spread, and ends with one line of JSON."""

import engine as _engine  # noqa: F401  before the libraries that it quiets
