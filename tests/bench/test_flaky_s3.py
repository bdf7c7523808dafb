"""In calm weather it is an S3 server; in a storm answers are wrong in every way, and then right."""

import os
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bench import flaky_s3
from engine.errors import RegistryError
from engine.stores import open_store


def test_it_storms_and_is_calm_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flaky_s3, "HANGS_S", 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    with flaky_s3.sky() as (weather, env):
        assert os.environ["AWS_ENDPOINT_URL"] == env["AWS_ENDPOINT_URL"] != "http://elsewhere"
        once = Config(retries={"total_max_attempts": 1})
        s3 = boto3.Session().client("s3", config=once)
        s3.create_bucket(Bucket="models")
        s3.put_object(Bucket="models", Key="x", Body=b"x" * 1000)
        weather.storm, good, bad = True, 0, 0
        for _ in range(60):
            try:
                body = s3.get_object(Bucket="models", Key="x")["Body"].read()
                good += body == b"x" * 1000
            except (ClientError, BotoCoreError):
                bad += 1
        assert good and bad and good + bad == 60, "half an answer was taken for a whole one"
        assert weather.told["error"] and weather.told["cut"] and sum(weather.told.values()) == bad
        weather.storm = False
        assert s3.get_object(Bucket="models", Key="x")["Body"].read() == b"x" * 1000
    assert os.environ["AWS_ENDPOINT_URL"] == "http://elsewhere"


def test_half_an_object_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the store of models: half a manifest would be a fault of the model's."""
    monkeypatch.setattr(flaky_s3, "HANGS_S", 0.0)
    (tmp_path / "x").write_bytes(b"x" * 1500)
    with flaky_s3.sky() as (weather, _):
        boto3.Session().client("s3").create_bucket(Bucket="models")
        store = open_store("s3://models/all")
        store.write("models/x", tmp_path / "x")
        weather.storm, whole, broken = True, 0, 0
        for _ in range(20):
            try:
                whole += store.read("models/x", 4000)[0] == b"x" * 1500  # type: ignore[index]
            except RegistryError:
                broken += 1
        weather.storm = False
        assert whole and broken and whole + broken == 20 and weather.told["cut"]


def test_what_is_slow_comes_slowly_and_whole(tmp_path: Path) -> None:
    content = os.urandom(10 * flaky_s3.SLOW_BYTES)
    (tmp_path / "x").write_bytes(content)
    with flaky_s3.sky() as (weather, _):
        boto3.Session().client("s3").create_bucket(Bucket="models")
        store = open_store("s3://models/all")
        for name in ("models/x", "models/y"):
            store.write(name, tmp_path / "x")
        weather.slow, took = "x", {}
        for name in ("models/x", "models/y"):
            began = time.monotonic()
            assert b"".join(store.stream(name)) == content
            took[name] = time.monotonic() - began
        assert took["models/x"] > 10 * flaky_s3.SLOW_S > took["models/y"]
