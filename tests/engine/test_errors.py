"""The error tree."""

import inspect

from engine import errors


def test_every_error_hangs_on_the_root():
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        assert issubclass(kind, errors.TroupeError)


def test_spec_error_keeps_its_field():
    error = errors.SpecError("seed", "must be a whole number")
    assert (error.field, error.message) == ("seed", "must be a whole number")
    assert str(error) == "seed: must be a whole number"
