"""Benches: each prints its figures, with spread, and ends with one line of JSON."""
