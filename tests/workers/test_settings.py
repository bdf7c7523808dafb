"""The worker's settings are the gateway's and a few more."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings as ServiceSettings
from workers.settings import Settings


def test_what_both_know_has_one_default() -> None:
    theirs, ours = ServiceSettings(), Settings()
    assert ours.model_dump(include=set(ServiceSettings.model_fields)) == theirs.model_dump()


def test_its_own_fields_are_few_and_described() -> None:
    own = Settings.model_fields.keys() - ServiceSettings.model_fields.keys()
    assert own == {"model_dir", "job_limit_s", "encodings_dir", "runtime", "signing_dir"}
    assert all(Settings.model_fields[name].description for name in own)


def test_they_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_MODEL_DIR", "/models/x")
    monkeypatch.setenv("TROUPE_LEASE_S", "3")
    monkeypatch.setenv("TROUPE_RUNTIME", " compile=inductor ")
    settings = Settings()
    assert (str(settings.model_dir), settings.lease_s) == ("/models/x", 3.0)
    assert settings.runtime == "compile=inductor"


def test_a_runtime_of_other_words_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_RUNTIME", "compile=fast")
    with pytest.raises(ValidationError, match="there are eager, inductor, aoti, tensorrt"):
        Settings()


@pytest.mark.parametrize(
    ("blobs", "folder"),
    [
        (".troupe/blobs", ".troupe/signing"),
        ("/data/blobs", "/data/signing"),
        ("file:///a%20b/blobs", "/a b/signing"),
        ("s3://bucket/prefix", ".troupe/signing"),
    ],
)
def test_our_own_chain_lies_beside_the_blobs(blobs: str, folder: str) -> None:
    assert Settings(blobs_url=blobs).own_signing_dir == Path(folder)
