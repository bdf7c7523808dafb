"""`troupe generate`: what is typed becomes a Spec, errors name the option, files appear."""

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from engine import watermark
from engine.errors import SpecError
from engine.presets import MINIATURE, PHANTOM_1_3B
from engine.spec import Guidance, Spec
from engine.video import Video
from troupe.generate import num_frames, option_of, parse_size, pull, read_edit, read_subjects
from troupe.main import app

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("prompt", "--prompt"),
        ("num_frames", "--frames"),
        ("width", "--size"),
        ("height", "--size"),
        ("negative_prompt", "--negative"),
        ("guidance.scale", "--guidance"),
        ("guidance.identity_scale", "--identity-scale"),
        ("subjects", "--subject"),
        ("solver", "--solver"),
        ("tier", "--tier"),
        ("--seconds", "--seconds"),
    ],
)
def test_field_of_a_spec_is_told_as_its_option(field: str, option: str) -> None:
    assert option_of(field) == option


def test_size_is_width_by_height() -> None:
    assert parse_size("96x64") == {"width": 96, "height": 64}
    assert parse_size(None) == {}


@pytest.mark.parametrize("size", ["96", "x64", "96x", "-96x64", "96x64x3", "9e1x64", ""])
def test_other_sizes_are_refused(size: str) -> None:
    with pytest.raises(SpecError, match="WIDTHxHEIGHT"):
        parse_size(size)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(2.0, None, 17), (2.1, None, 17), (4.0, None, 33), (1.0, 4, 5)]
)
def test_seconds_become_frames_on_the_grid(seconds: float, fps: int | None, frames: int) -> None:
    assert num_frames(MINIATURE, None, seconds, fps) == frames


def test_frames_and_seconds_exclude_each_other() -> None:
    with pytest.raises(SpecError, match="two ways"):
        num_frames(MINIATURE, 17, 2.0, None)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(SpecError, match="must lie between"):
        num_frames(MINIATURE, None, seconds, None)


def test_subjects_keep_their_order() -> None:
    pairs = [f"bob={EXAMPLES / 'bob.png'}", f"@anna={EXAMPLES / 'anna.png'}"]
    assert [reference.name for reference in read_subjects(pairs)] == ["bob", "anna"]


def test_picture_that_is_none_is_told(tmp_path: Path) -> None:
    fake = tmp_path / "anna.png"
    fake.write_text("not a picture")
    with pytest.raises(SpecError, match="not a picture"):
        read_subjects([f"anna={fake}"])
    whole = (EXAMPLES / "anna.png").read_bytes()
    fake.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match="not a picture"):
        read_subjects([f"anna={fake}"])


def test_missing_picture_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        read_subjects([f"anna={tmp_path / 'nobody.png'}"])


@pytest.mark.parametrize("pair", ["anna", "=anna.png", "anna=", ""])
def test_pair_must_be_a_pair(pair: str) -> None:
    with pytest.raises(SpecError, match="NAME=PICTURE"):
        read_subjects([pair])


def test_writes_the_video_and_its_contact_sheet(random_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "clip.mp4"
    told = CliRunner().invoke(
        app,
        [
            "generate",
            "--prompt=@anna bounces",
            f"--subject=anna={EXAMPLES / 'anna.png'}",
            "--frames=5",
            "--size=32x32",
            "--steps=1",
            f"--model={random_model}",
            f"--out={target}",
        ],
    )
    assert told.exit_code == 0, told.output
    assert "32x32, enlarged 8 times" in " ".join(told.output.split())
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    with Image.open(target.with_suffix(".png")) as sheet:
        assert sheet.width > sheet.height > 0
    found = watermark.find(Video.from_mp4(target.read_bytes()).frames)
    assert found is not None and found.payload is not None  # stands for the request


@pytest.mark.parametrize(
    ("options", "told_of"),
    [
        (["--prompt=@bob waits"], "--prompt names @bob, but there is no picture"),
        (["--prompt=", "--seed=1"], "--prompt must not be empty"),
        (["--prompt=x", "--size=33x64"], "--size must be a multiple of 8"),
        (["--prompt=x", "--frames=6"], "--frames must be one more than a multiple of 4"),
        (["--prompt=x", "--guidance=nan"], "--guidance must lie between"),
        (["--prompt=x", "--identity-scale=2"], "--identity-scale must lie between 0 and 1, got 2"),
        (["--prompt=x", "--solver=magic"], "--solver must be one of"),
        (["--prompt=x", "--tier=magic"], "--tier must be one of exact, fast"),
        (["--prompt=x", "--steps=0"], "--steps must lie between"),
    ],
)
def test_error_names_the_option(random_model: Path, options: list[str], told_of: str) -> None:
    told = CliRunner().invoke(app, ["generate", f"--model={random_model}", *options])
    assert told.exit_code == 1
    assert told_of in told.output


@pytest.mark.parametrize(
    ("runtime", "told_of"),
    [
        ("compile=fast", "--runtime: unknown compile 'fast'; there are eager, inductor"),
        ("device=cuda:99", "--runtime: device=cuda:99 is not there; torch sees cpu"),
        ("bf16", "--runtime: 'bf16' must be KEY=VALUE"),
        ("encoders=remote", "--runtime: encoders=remote is for workers"),
    ],
)
def test_a_runtime_that_cannot_be_had_is_told(
    random_model: Path, runtime: str, told_of: str
) -> None:
    options = ["--prompt=x", f"--model={random_model}", f"--runtime={runtime}"]
    told = CliRunner().invoke(app, ["generate", *options])
    assert told.exit_code == 1 and told_of in " ".join(told.output.split())


def test_the_runtime_of_the_environment_serves_where_none_is_given(random_model: Path) -> None:
    """An empty one is none, as for a worker."""

    def told(wanted: str, *options: str) -> str:
        given = ["generate", "--prompt=", f"--model={random_model}", *options]
        result = CliRunner().invoke(app, given, env={"TROUPE_RUNTIME": wanted})
        assert result.exit_code == 1
        return " ".join(result.output.split())

    assert "--runtime or TROUPE_RUNTIME: unknown compile 'fast'" in told("compile=fast")
    assert "--prompt must not be empty" in told("compile=fast", "--runtime=device=cpu")
    assert "--prompt must not be empty" in told("")
    assert "TROUPE_RUNTIME" in CliRunner().invoke(app, ["generate", "--help"]).output


@pytest.mark.parametrize(("rank", "status"), [("0", 1), ("1", 0)])
def test_several_processes_without_a_way_to_share_are_refused(rank: str, status: int) -> None:
    """By the first: were another to fail, torchrun would end it, perhaps before it has spoken."""
    env = {"WORLD_SIZE": "2", "RANK": rank}
    told = CliRunner().invoke(app, ["generate", "--prompt=x", "--model=nowhere"], env=env)
    assert told.exit_code == status
    assert ("--parallel is missing: torchrun has started 2" in told.output) == (rank == "0")
    assert rank == "0" or not told.output


def test_one_process_needs_no_way_to_share() -> None:
    told = CliRunner().invoke(
        app, ["generate", "--prompt=x", "--model=nowhere"], env={"WORLD_SIZE": "1", "RANK": "0"}
    )
    assert told.exit_code == 1 and "--model nowhere" in told.output


def test_flipped_byte_in_the_model_is_told(random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in random_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = bytearray((folder / "vae.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "vae.safetensors").write_bytes(weights)
    told = CliRunner().invoke(app, ["generate", "--prompt=x", f"--model={folder}"])
    assert told.exit_code == 1
    assert "vae.safetensors" in told.output and "troupe doctor" in told.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--mask", "m.png"], "--mask needs --video"),
        (["--strength", "0.3"], "--strength needs --video"),
        (["--video", "nowhere.mp4"], "--video there is no file nowhere.mp4"),
        (["--video", __file__], "is not a video that can be read"),
    ],
)
def test_what_is_wrong_with_an_edit_is_told(given: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["generate", "--prompt", "a meadow", *given])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_video_is_edited(tmp_path: Path) -> None:
    """What was made is taken up again; without a length it keeps its own."""
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    common = ["--prompt", "a sunny meadow", "--steps", "2"]
    runner = CliRunner()
    made = runner.invoke(app, ["generate", *common, "--frames", "9", "--out", str(first)])
    assert made.exit_code == 0, made.output
    mask = Image.new("L", (10, 10))
    mask.paste(255, (5, 0, 10, 10))
    mask.save(tmp_path / "mask.png")
    given = ["--video", str(first), "--strength", "0.5", "--mask", str(tmp_path / "mask.png")]
    edited = runner.invoke(app, ["generate", *common, *given, "--out", str(second)])
    assert edited.exit_code == 0, edited.output
    with av.open(str(second)) as container:
        assert len(list(container.decode(video=0))) == 9


def test_what_is_transparent_in_a_mask_is_not_white(tmp_path: Path) -> None:
    """White shows on the left; on the right white and black lie under full transparency."""
    mask = Image.new("RGBA", (48, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 32))
    mask.paste((0, 0, 0, 0), (32, 0, 48, 32))
    mask.save(tmp_path / "mask.png")
    spec = Spec.of(MINIATURE, "a meadow", width=48, height=32, num_frames=5)
    old = Video(np.zeros((5, 32, 48, 3), np.uint8), 8)
    edit = read_edit(old, None, tmp_path / "mask.png", spec)
    assert edit.mask is not None and edit.mask[:, :16].all() and not edit.mask[:, 16:].any()
    Image.new("RGBA", (48, 32), (255, 255, 255, 0)).save(tmp_path / "mask.png")
    with pytest.raises(SpecError, match="no white"):
        read_edit(old, None, tmp_path / "mask.png", spec)


def test_guidance_keeps_the_presets_kind() -> None:
    usual = Guidance.assumed(MINIATURE)
    assert pull(MINIATURE, None, None) == usual
    assert pull(MINIATURE, None, 0.0) == replace(usual, identity_scale=0.0) != usual
    assert pull(MINIATURE, 4.0, None) == replace(usual, scale=4.0)
    assert pull(MINIATURE, 1.0, None).is_off
    phantom = pull(PHANTOM_1_3B, 6.0, None)
    assert (phantom.mode, phantom.text_scale, phantom.image_scale) == ("dual", 6.0, 5.0)


def test_a_wrong_request_is_told_before_the_weights_are_read(
    random_model: Path, tmp_path: Path
) -> None:
    """A large model takes minutes to load."""
    folder = Path(shutil.copytree(random_model, tmp_path / "model"))
    (folder / "dit.safetensors").write_bytes(b"half a file")
    options = [f"--model={folder}", "--prompt=x"]
    told = CliRunner().invoke(app, ["generate", *options, "--size=100x50"])
    assert told.exit_code == 1 and "--size must be a multiple of 8" in told.output
    told = CliRunner().invoke(app, ["generate", *options])
    assert told.exit_code == 1 and "dit.safetensors" in told.output


def test_a_file_that_would_be_no_mp4_is_refused(random_model: Path, tmp_path: Path) -> None:
    options = ["--prompt=x", f"--model={random_model}", f"--out={tmp_path / 'film.avi'}"]
    told = CliRunner().invoke(app, ["generate", *options])
    assert told.exit_code == 1 and "must end in .mp4" in told.output
    assert not list(tmp_path.iterdir())
