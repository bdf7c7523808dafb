"""The worker's settings are the gateway's and a few more."""

import pytest

from service.settings import Settings as ServiceSettings
from workers.settings import Settings


def test_what_both_know_has_one_default() -> None:
    theirs, ours = ServiceSettings(), Settings()
    assert ours.model_dump(include=set(ServiceSettings.model_fields)) == theirs.model_dump()


def test_its_own_fields_are_few_and_described() -> None:
    own = Settings.model_fields.keys() - ServiceSettings.model_fields.keys()
    assert own == {"model_dir", "job_limit_s", "load_limit_s", "encodings_dir"}
    assert all(Settings.model_fields[name].description for name in own)


def test_they_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_MODEL_DIR", "/models/x")
    monkeypatch.setenv("TROUPE_LEASE_S", "3")
    settings = Settings()
    assert (str(settings.model_dir), settings.lease_s) == ("/models/x", 3.0)
