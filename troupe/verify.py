"""`troupe verify`: what a video file says of where it comes from, and whether that holds."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import VideoError
from troupe.terminal import busy, fail, out

if TYPE_CHECKING:
    from engine.watermark import Found
    from workers.provenance import Account


@dataclass(frozen=True)
class Verdict:
    """A file's manifest and the mark in its pixels. pixels: why these could not be looked at."""

    account: "Account"
    mark: "Found | None"
    pixels: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether mark and manifest name the same video; None where one of them names none."""
        told = self.account.generation.get("watermark")
        if told is None or self.mark is None or self.mark.payload is None:
            return None
        return bool(told == self.mark.payload.hex())

    @property
    def holds(self) -> bool:
        """A valid signature, and no mark of another video."""
        return self.account.valid and self.agrees is not False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        mark = None
        if self.mark is not None:
            payload = None if self.mark.payload is None else self.mark.payload.hex()
            mark = {"payload": payload, "false_alarm": self.mark.false_alarm}
        return {
            "holds": self.holds,
            **asdict(self.account),
            "watermark": mark,
            "agrees": self.agrees,
            "pixels": self.pixels,
        }


def verify(
    file: Annotated[Path, typer.Argument(help="The video to look at, mp4.")],
    trust: Annotated[
        Path | None, typer.Option(help="PEM of the roots whose signatures count; else any does.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Say whether a video's signature holds, what it names, and what mark its pixels carry.

    Ends with 0 if the signature holds (with --trust: and is of one of those), else with 1.
    """
    try:
        content = file.read_bytes()
        roots = "" if trust is None else trust.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot be read: {error}")
    with busy("looking"):
        verdict = judge(content, roots)
    if as_json:
        print(json.dumps(verdict.to_json()))
    else:
        for line in lines(verdict):
            out.print(line, markup=False, soft_wrap=True)
    if not verdict.holds or (roots and not verdict.account.trusted):
        raise typer.Exit(1)


def judge(content: bytes, roots: str = "") -> Verdict:
    """Reads the manifest, then looks for the mark in the pixels."""
    from engine import watermark
    from engine.video import Video
    from workers.provenance import read

    account = read(content, roots)
    try:
        return Verdict(account, watermark.find(Video.from_mp4(content).frames))
    except VideoError as error:
        return Verdict(account, None, str(error))


def lines(verdict: Verdict) -> list[str]:
    """For a person."""
    account = verdict.account
    told = [f"signature  {_signature(account)}"]
    if account.signed:
        told.append(f"made by AI {'yes' if account.made_by_ai else 'not said'}")
    names = {"video_id": "video", "model_digest": "model", "subjects": "subjects", "time": "time"}
    for key, name in names.items():
        if value := account.generation.get(key):
            shown = ", ".join(value) if isinstance(value, list) else value
            told.append(f"{name:<10} {shown}")
    return [*told, f"watermark  {_mark(verdict)}"]


def _signature(account: "Account") -> str:
    if not account.signed:
        return f"none{''.join(f' ({why})' for why in account.problems)}"
    if not account.valid:
        return f"INVALID: {', '.join(account.problems)}"
    return f"valid, by {account.signer} ({'trusted' if account.trusted else 'not in a trust list'})"


def _mark(verdict: Verdict) -> str:
    if verdict.pixels:
        return verdict.pixels
    if verdict.mark is None:
        return "not found"
    if verdict.mark.payload is None:
        return "found, made by Troupe; too faint to say which video"
    agrees = {True: ", as the signature says", False: ", of ANOTHER video", None: ""}
    return f"found, {verdict.mark.payload.hex()}{agrees[verdict.agrees]}"
