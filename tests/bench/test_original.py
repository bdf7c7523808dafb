"""The bench against the authors' own code: what stands in for theirs, and the whole where it lies.

`TROUPE_WAN_SOURCE` and `TROUPE_PHANTOM_SOURCE` name checkouts of the originals.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bench import original as bench

SOURCES = {"--wan": "TROUPE_WAN_SOURCE", "--phantom": "TROUPE_PHANTOM_SOURCE"}


def test_what_stands_in_for_flash_attention_is_attention() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 5, 2, 4), torch.randn(1, 7, 2, 4), torch.randn(1, 7, 2, 4)
    weights = torch.einsum("blnd,bknd->bnlk", q, k).div(2).softmax(-1)
    want = torch.einsum("bnlk,bknd->blnd", weights, v)
    torch.testing.assert_close(bench.attention(q, k, v, k_lens=torch.tensor([7])), want)
    with pytest.raises(AssertionError):
        bench.attention(q, k, v, k_lens=torch.tensor([6]))


def test_error_is_relative_to_the_largest_value() -> None:
    assert bench.error(torch.tensor([4.0, 1.5]), torch.tensor([4.0, 1.0])) == 0.125


def test_what_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments([])
    assert "--wan, --phantom" in capsys.readouterr().err
    assert bench.main(["--wan", str(tmp_path)]) == 1
    assert "no wan/" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", SOURCES)
def test_equals_the_original(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    if SOURCES[option] not in os.environ:
        pytest.skip(f"{SOURCES[option]} is not set")
    assert bench.main([option, os.environ[SOURCES[option]], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result and max(result.values()) <= 2e-5
