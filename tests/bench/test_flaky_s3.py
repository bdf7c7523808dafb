"""In calm weather it is an S3 server; in a storm answers are wrong in every way, and then right."""

import os

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bench import flaky_s3


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
