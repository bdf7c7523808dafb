"""From frames to a signed file and back: what it tells, what breaks it, what stays when it goes."""

import io
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from engine import watermark
from engine.errors import SigningError
from engine.video import Made, Video
from workers import signing
from workers.provenance import Account, Origin, Provenance, Sealed, read

ORIGIN = Origin("video_1f", "ab" * 32, "@anna waves at dusk", ("cd" * 32, "subj_2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "signing"
    signing.make(path)
    return path


@pytest.fixture(scope="module")
def film() -> Video:
    frames = np.full((5, 64, 96, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        frame[20:40, 10 + 8 * number : 30 + 8 * number] = (200, 40, 90)
    return Video(frames, 8, Made("exact", 48, 48))


@pytest.fixture(scope="module")
def sealed(folder: Path, film: Video) -> Sealed:
    return Provenance(signing.load(folder)).seal(film, ORIGIN)


def payload_range(content: bytes) -> range:
    """Where the coded frames lie: the inside of the mdat box."""
    at = content.index(b"mdat")
    return range(at + 4, at - 4 + int.from_bytes(content[at - 4 : at], "big"))


def test_a_sealed_video_says_where_it_is_from(sealed: Sealed, folder: Path, film: Video) -> None:
    account = read(sealed.content)
    assert (account.signed, account.valid, account.trusted) == (True, True, False)
    assert account.problems == () and account.made_by_ai
    told = account.generation
    assert told["statement"] == "AI-generated" and told["video_id"] == "video_1f"
    assert told["model_digest"] == "ab" * 32
    assert told["prompt_sha256"] == sha256(ORIGIN.prompt.encode()).hexdigest()
    assert told["subjects"] == list(ORIGIN.subjects)
    assert told["frames_sha256"] == sealed.frames_sha256 == film.sha256()
    assert told["signer"] == "a self-made certificate, in no trust list"
    assert read(sealed.content, (folder / signing.CHAIN).read_text()).trusted


def test_the_file_plays_and_keeps_its_comment_and_its_mark(sealed: Sealed) -> None:
    found = watermark.find(Video.from_mp4(sealed.content).frames)
    assert found is not None and found.payload is not None
    assert found.payload == watermark.payload_of("video_1f") == bytes.fromhex(sealed.mark)
    assert sealed.told() == {"frames_sha256": sealed.frames_sha256, "watermark": sealed.mark}
    with av.open(io.BytesIO(sealed.content)) as container:
        assert container.metadata["comment"] == "tier exact, 48 of 48 forwards computed"


def test_no_word_of_the_prompt_is_in_the_file(sealed: Sealed) -> None:
    assert not [word for word in (b"anna", b"waves", b"dusk") if word in sealed.content]


def test_one_flipped_byte_is_told_wherever_it_is(sealed: Sealed) -> None:
    where = payload_range(sealed.content)
    assert len(where) > 1000
    rng = np.random.default_rng(0)
    for at in [where[0], where[-1], *rng.choice(where, 200, replace=False)]:
        content = bytearray(sealed.content)
        content[at] ^= 1 << rng.integers(8)
        account = read(bytes(content))
        assert not account.valid and account.problems == ("assertion.bmffHash.mismatch",), at


def test_a_statement_that_was_changed_is_told(sealed: Sealed) -> None:
    forged = sealed.content.replace(b"video_1f", b"video_2f")
    account = read(forged)
    assert account.generation["video_id"] == "video_2f"
    assert not account.valid and "assertion.hashedURI.mismatch" in account.problems


def test_a_copy_of_the_streams_loses_the_signature_and_keeps_the_mark(sealed: Sealed) -> None:
    out = io.BytesIO()
    with av.open(io.BytesIO(sealed.content)) as old, av.open(out, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert read(out.getvalue()) == Account()
    found = watermark.find(Video.from_mp4(out.getvalue()).frames)
    assert found is not None and found.payload == watermark.payload_of("video_1f")


def test_two_jobs_of_one_request_differ_in_bytes_and_agree_in_frames(
    sealed: Sealed, folder: Path, film: Video
) -> None:
    other = Provenance(signing.load(folder)).seal(film, replace(ORIGIN, video_id="video_2f"))
    assert other.content != sealed.content and other.mark != sealed.mark
    assert other.frames_sha256 == sealed.frames_sha256


def test_without_a_folder_a_chain_of_our_own_signs_and_a_folder_must_be_whole(
    folder: Path, film: Video, tmp_path: Path
) -> None:
    own = tmp_path / "state" / "signing"
    content = Provenance.load(None, own).seal(film, ORIGIN).content
    assert read(content, (own / signing.CHAIN).read_text()).trusted
    content = Provenance.load(folder, own).seal(film, ORIGIN).content
    assert read(content, (folder / signing.CHAIN).read_text()).trusted
    with pytest.raises(SigningError, match="gone"):
        Provenance.load(tmp_path / "gone", own)


def test_the_signature_of_somebody_else_is_not_trusted(sealed: Sealed, tmp_path: Path) -> None:
    signing.make(tmp_path / "other")
    account = read(sealed.content, (tmp_path / "other" / signing.CHAIN).read_text())
    assert account.valid and not account.trusted


@pytest.mark.parametrize("part", ["chain", "key"])
def test_without_a_signature_there_is_no_video(folder: Path, film: Video, part: str) -> None:
    broken = replace(signing.load(folder), **{part: "no PEM"})
    with pytest.raises(SigningError, match="could not be signed"):
        Provenance(broken).seal(film, ORIGIN)


def test_a_key_that_is_not_the_chains_seals_nothing(
    folder: Path, film: Video, tmp_path: Path
) -> None:
    signing.make(tmp_path / "other")
    mixed = replace(signing.load(folder), key=signing.load(tmp_path / "other").key)
    with pytest.raises(SigningError):
        Provenance(mixed).seal(film, ORIGIN)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42"])
def test_what_is_no_video_has_no_valid_account(content: bytes) -> None:
    assert not read(content).valid and not read(content).signed
