"""`troupe plan` prints what the engine counts, and says what is wrong with a request."""

import json

import pytest
from typer.testing import CliRunner, Result

from troupe.main import app

SMALL = ("plan", "--preset", "miniature", "--steps", "8")


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_json_adds_up() -> None:
    values = json.loads(told(*SMALL, "--subjects", "3", "--json").stdout)
    total = sum(stage["runs"] * stage["flops_each"] for stage in values["stages"])
    assert total == pytest.approx(values["flops"])
    assert sum(stage["expected_s"] for stage in values["stages"]) == pytest.approx(
        values["expected_s"]
    )
    weights = sum(values["weights_bytes"].values())
    assert values["memory_bytes"]["offload=none"] > weights > 0
    assert values["guidance_forwards"] == {"off": 8, "single": 16, "dual": 24}


def test_cards_share_a_video() -> None:
    alone = json.loads(told(*SMALL, "--json").stdout)
    shared = json.loads(told(*SMALL, "--cards", "6", "--json").stdout)["shared"]
    assert alone["shared"] is None
    assert (shared["cfg"], shared["sequence"]) == (2, 3) and shared["sent_bytes"] > 0
    assert shared["expected_s"] < alone["expected_s"]
    assert "6 such cards, cfg=2,sequence=3" in told(*SMALL, "--cards", "6").output


def test_a_runtime_is_told_beside_the_others() -> None:
    asked = (*SMALL, "--runtime", "tile=350,offload=encoders")
    memory = json.loads(told(*asked, "--json").stdout)["memory_bytes"]
    assert 0 < memory["offload=encoders,tile=350"] <= memory["offload=encoders"]
    assert "offload=encoders,tile=350 " in told(*asked).output


def test_table_names_every_stage_and_whether_it_fits() -> None:
    shown = told(*SMALL, "--subjects", "1", "--guidance", "dual").output
    words = ("beside the weights", "weights=int8,offload=group")
    for stage in ("VAE encoder", "denoising: subjects alone", "VAE decoder", "fits", *words):
        assert stage in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "wan-3b"), "wan-1.3b"),
        (("--gpu", "abacus"), "h200"),
        (("--guidance", "triple"), "single"),
        (("--subjects", "9"), "--subjects 9: must be from 0 to 4"),
        (("--subjects", "-1"), "--subjects -1"),
        (("--size", "97x64"), "multiple of 8"),
        (("--frames", "18"), "--frames"),
        (("--cards", "14"), "--cards 14"),
        (("--interval", "0.9", "0.1"), "--interval"),
        (("--runtime", "tile=5"), "--runtime: tile=5: tiles of so few"),
        (("--runtime", "device=cpu"), "--runtime: device=cpu is not the card"),
        (("--runtime", "tiles=4096"), "--runtime: unknown key 'tiles'; there are device, dtype"),
        (("--runtime", "compile=fast"), "--runtime: unknown compile 'fast'; there are eager"),
        (("--runtime", "bf16"), "--runtime: 'bf16' must be KEY=VALUE"),
    ],
)
def test_wrong_request_is_named(arguments: tuple[str, ...], message: str) -> None:
    answer = told(*SMALL, *arguments)
    assert answer.exit_code == 1 and message in answer.output
