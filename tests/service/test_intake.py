"""The child that decodes: refusals become errors that name the field, and limits hold."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from service import decode, decode_video, intake
from service.errors import RequestError
from service.intake import Intake, Upload
from service.settings import Settings
from tests.service.rig import picture, wait_for


@pytest.fixture
def door() -> Iterator[Intake]:
    found = Intake(Settings(max_picture_mb=1, decode_timeout_s=5))
    yield found
    found.close()


def test_pictures_come_back_clean_and_in_order(door: Intake) -> None:
    uploads = [Upload("images", f"{n}.png", picture("red", (20 + n, 20))) for n in range(3)]
    out = door.clean(uploads, "t")
    assert out == [decode.clean(upload.data, 25) for upload in uploads]


@pytest.mark.parametrize(
    ("data", "words", "status"),
    [
        (b"", "is empty", 400),
        (b"text", "is not a PNG, JPEG or WebP picture", 400),
        (picture()[:60], "damaged", 400),
        (bytes(1_000_001), "is 1.0 MB; at most 1 MB", 413),
    ],
)
def test_refusals_name_field_and_file(door: Intake, data: bytes, words: str, status: int) -> None:
    good = Upload("images", "good.png", picture())
    with pytest.raises(RequestError, match=words) as told:
        door.clean([good, Upload("images", "bad.png", data)], "t")
    assert (told.value.param, told.value.reason) == ("images", "invalid_image")
    assert told.value.http_status == status
    assert "'bad.png'" in str(told.value)


def waiting(door: Intake) -> subprocess.Popen[bytes]:
    child = door._spare._waiting
    assert child is not None and child.poll() is None
    return child


def test_a_child_waits_for_the_next_picture_and_takes_only_that_one(door: Intake) -> None:
    assert door._spare._waiting is None  # nobody has come yet
    upload = Upload("images", "a.png", picture())
    wanted = decode.clean(upload.data, 25)
    assert door.clean([upload], "t") == [wanted]
    first = waiting(door)
    assert door.clean([upload], "t") == [wanted] and first.returncode == 0
    second = waiting(door)
    second.kill()  # by whoever kills what is idle
    second.wait()
    assert door.clean([upload], "t") == [wanted]
    third = waiting(door)
    assert len({first.pid, second.pid, third.pid}) == 3
    door.close()
    assert third.returncode is not None


def test_no_room_for_a_child_that_waits_costs_no_picture(
    door: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Upload("images", "a.png", picture())
    wanted = door.clean([upload], "t")
    started = intake._child

    def full(arguments: list[str]) -> subprocess.Popen[bytes]:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(intake, "_child", full)
    assert door.clean([upload], "t") == wanted and door._spare._waiting is None
    monkeypatch.setattr(intake, "_child", started)
    assert door.clean([upload], "t") == wanted


def test_a_child_that_waits_ends_with_whoever_started_it() -> None:
    code = (
        "from service import decode, intake; import os, sys;"
        "spare = intake.Spare([decode.__file__, '25', '5']); spare.fill();"
        "print(spare.take().pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    wait_for(lambda: not psutil.pid_exists(int(done.stdout)), 20)


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    child = tmp_path / "child.py"
    child.write_text(code)
    monkeypatch.setattr(decode, "__file__", str(child))


def around(clean: str, arguments: str = "sys.argv[1:]") -> str:
    """The real child's main, around another decoder."""
    return (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('decode', {decode.__file__!r})\n"
        "child = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(child)\n"
        f"{clean}\n"
        "child.clean = clean\n"
        f"sys.exit(child.main({arguments}))\n"
    )


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script(tmp_path, monkeypatch, code)
    door = Intake(Settings(decode_timeout_s=1.5))
    begin = time.monotonic()
    with pytest.raises(RequestError, match="longer than 1.5 s"):
        door.clean([Upload("images", "a.png", picture())], "t")
    assert time.monotonic() - begin < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    door.close()


def test_a_decoder_that_dies_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, monkeypatch, "import os; os.abort()")
    door = Intake(Settings())
    with pytest.raises(RequestError, match="damaged, or needs too much memory"):
        door.clean([Upload("images", "a.png", picture())], "t")
    door.close()


def test_a_decoder_that_is_killed_costs_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a machine short of memory: the next child makes of it what the first would have made. Who
    is killed again is told, and nobody tries for ever."""
    mark, wanted = tmp_path / "starts", decode.clean(picture(), 25)
    code = (
        "import os, sys\n"
        f"mark, most = {str(mark)!r}, MOST\n"
        "open(mark, 'a').write('.')\n"
        "if os.path.getsize(mark) <= most: os.kill(os.getpid(), 9)\n"
        f"os.execv(sys.executable, [sys.executable, '-I', {decode.__file__!r}, *sys.argv[1:]])\n"
    )
    script(tmp_path, monkeypatch, code.replace("MOST", "1"))
    door = Intake(Settings())
    upload = Upload("images", "a.png", picture())
    assert door.clean([upload], "t") == [wanted]
    door.close()
    mark.unlink()
    script(tmp_path, monkeypatch, code.replace("MOST", "9"))
    door = Intake(Settings())
    with pytest.raises(RequestError, match="damaged, or needs too much memory"):
        door.clean([upload], "t")
    assert len(mark.read_text()) <= 3  # two of them asked, one waits for the next
    door.close()


def test_a_decoder_that_computes_for_ever_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal that is not the one of a machine short of memory: it is asked once."""
    mark = tmp_path / "starts"
    clean = f"open({str(mark)!r}, 'a').write('.'); exec('while True: pass')"
    code = around(f"def clean(*given): {clean}", "sys.argv[1:2] + ['0']")
    script(tmp_path, monkeypatch, code)
    door = Intake(Settings(decode_timeout_s=60))
    with pytest.raises(RequestError, match="damaged, or needs too much memory"):
        door.clean([Upload("images", "a.png", picture())], "t")
    assert mark.read_text() == "."
    door.close()


def test_the_child_has_a_limit_on_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real child's main, around a decoder that asks for 4 GB."""
    code = around("clean = lambda data, limit: bytes(4 << 30)[:1]")
    script(tmp_path, monkeypatch, code)
    door = Intake(Settings())
    with pytest.raises(RequestError, match="too much memory"):
        door.clean([Upload("images", "a.png", picture())], "t")
    door.close()


def test_the_environment_adds_no_code_to_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('taken over')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    door = Intake(Settings())
    assert door.clean([Upload("images", "a.png", picture())], "t")
    door.close()
    assert intake.decode is decode


def test_videos_come_back_as_frames_or_are_refused_by_name(door: Intake) -> None:
    from engine.video import Video

    video = Video(np.full((5, 64, 96, 3), 90, np.uint8), 8)
    plan = decode_video.Plan(fps=8, most=9, size=(96, 64))
    clip = decode_video.unpack(door.film(Upload("video", "a.mp4", video.mp4()), plan, "t"))
    assert clip[:4] == (5, 64, 96, 8)
    for data, words, status in (
        (b"", "is empty", 400),
        (picture(), "is not an MP4", 400),
        (bytes(8_000_001), "is 8.0 MB; at most 8 MB", 413),
    ):
        with pytest.raises(RequestError, match=f"the video 'b.mp4' {words}") as told:
            door.film(Upload("video", "b.mp4", data), plan, "t")
        assert (told.value.param, told.value.reason) == ("video", "invalid_video")
        assert told.value.http_status == status


def test_a_video_that_takes_too_much_memory_ends_only_its_child(
    door: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    code = Path(decode_video.__file__).read_text()
    assert "MEMORY_BYTES = 2 << 30" in code
    child.write_text(code.replace("MEMORY_BYTES = 2 << 30", "MEMORY_BYTES = 1 << 27"))
    monkeypatch.setattr(decode_video, "__file__", str(child))
    from engine.video import Video

    video = Video(np.full((5, 64, 96, 3), 90, np.uint8), 8)
    with pytest.raises(RequestError, match="is damaged"):
        door.film(Upload("video", "a.mp4", video.mp4()), decode_video.Plan(8, 9, (96, 64)), "t")
