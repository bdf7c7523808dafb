"""One way to fail: the message, the command that mends it, status 1."""

import pytest
import typer

from troupe.terminal import fail, progress_bar, waiting


def test_fail_tells_message_and_remedy_and_ends_with_status_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended:
        fail("There is no [model] here.", "git checkout -- models")
    told = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert "There is no [model] here." in told.err and "git checkout -- models" in told.err
    assert told.out == ""


def test_progress_stays_out_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar.add_task("encode", total=1.0)
    assert capsys.readouterr().out == ""


def test_without_a_terminal_each_thing_that_is_waited_for_is_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with waiting("Starting") as tell:
        for line in ("the gateway", "the gateway", "[the] model", "the gateway"):
            tell(line)
    told = capsys.readouterr()
    assert told.err.splitlines() == ["Starting", "the gateway", "[the] model", "the gateway"]
    assert told.out == ""
