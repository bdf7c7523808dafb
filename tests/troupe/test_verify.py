"""`troupe verify` from its command line: status 0 only where a signature holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from engine.video import Video
from troupe.main import app
from workers import signing
from workers.provenance import Origin, Provenance


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sealed video, the same unsigned, and the same without mark or signature."""
    folder = tmp_path_factory.mktemp("state")
    signing.make(folder / "signing")
    film = Video(np.full((5, 64, 96, 3), 128, np.uint8), 8)
    provenance = Provenance(signing.load(folder / "signing"))
    sealed = provenance.seal(film, Origin("video_1f", "ab" * 32, "waves", ("cd" * 32,)))
    (folder / "sealed.mp4").write_bytes(sealed.content)
    (folder / "marked.mp4").write_bytes(film.mp4(4, bytes.fromhex(sealed.mark)))
    (folder / "plain.mp4").write_bytes(film.mp4(4))
    return folder


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, words)])
    return done.exit_code, done.output


def told(*words: str | Path) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["verify", "--json", *map(str, words)])
    return done.exit_code, json.loads(done.stdout)


def test_a_sealed_video_holds(state: Path) -> None:
    status, text = run(state / "sealed.mp4")
    assert status == 0
    assert "valid, by Troupe, self-made (not in a trust list)" in text
    assert "made by AI yes" in text and "video_1f" in text and "ab" * 32 in text
    assert "as the signature says" in text
    status, answer = told(state / "sealed.mp4")
    assert (status, answer["holds"], answer["agrees"]) == (0, True, True)
    assert answer["generation"]["video_id"] == "video_1f"
    assert answer["watermark"]["payload"] == answer["generation"]["watermark"]


def test_without_a_signature_the_mark_is_told(state: Path) -> None:
    status, text = run(state / "marked.mp4")
    assert status == 1 and "signature  none" in text and "watermark  found, " in text
    status, answer = told(state / "marked.mp4")
    assert (status, answer["signed"], answer["agrees"]) == (1, False, None)
    assert answer["watermark"]["false_alarm"] < 1e-6


def test_without_either_there_is_nothing(state: Path) -> None:
    status, text = run(state / "plain.mp4")
    assert status == 1 and "watermark  not found" in text


def test_a_changed_file_does_not_hold(state: Path, tmp_path: Path) -> None:
    content = (state / "sealed.mp4").read_bytes().replace(b"AI-generated", b"A camera saw")
    (tmp_path / "forged.mp4").write_bytes(content)
    status, text = run(tmp_path / "forged.mp4")
    assert status == 1 and "INVALID: assertion.hashedURI.mismatch" in text


def test_a_signature_over_another_videos_pixels_does_not_hold(state: Path, tmp_path: Path) -> None:
    """Somebody takes our frames and signs them as a video of his own."""
    marked = Video.from_mp4((state / "marked.mp4").read_bytes())
    signing.make(tmp_path / "his")
    his = Provenance(signing.load(tmp_path / "his"))
    content = his._signed(marked.mp4(), his._manifest(Origin("x", "y", "z"), "", "00" * 8))
    (tmp_path / "his.mp4").write_bytes(content)
    status, text = run(tmp_path / "his.mp4")
    assert status == 1 and "of ANOTHER video" in text


def test_only_the_signers_that_are_trusted_count(state: Path, tmp_path: Path) -> None:
    signing.make(tmp_path / "other")
    ours = state / "signing" / signing.CHAIN
    assert run(state / "sealed.mp4", "--trust", ours)[0] == 0
    status, text = run(state / "sealed.mp4", "--trust", tmp_path / "other" / signing.CHAIN)
    assert status == 1 and "not in a trust list" in text


def test_what_cannot_be_read_is_told(state: Path, tmp_path: Path) -> None:
    status, text = run(tmp_path / "nowhere.mp4")
    assert status == 1 and "cannot be read" in text
    (tmp_path / "text.mp4").write_text("no video")
    status, text = run(tmp_path / "text.mp4")
    assert status == 1 and "cannot read the video" in text
