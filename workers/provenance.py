"""Where a video comes from, twice: signed in the file (C2PA), and marked in its pixels.

The manifest goes when somebody copies the streams into another file; the mark (`engine.watermark`)
stays. Neither tells a prompt, a name or a tenant.
"""

import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import c2pa

from engine import watermark
from engine.errors import SigningError
from workers import signing
from workers.signing import Signing

if TYPE_CHECKING:
    from engine.video import Video

FORMAT = "video/mp4"
AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ACTIONS, GENERATION = "c2pa.actions.v2", "troupe.generation"
UNTRUSTED = "signingCredential.untrusted"
# A file to be judged must not make us call on whom it names.
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True)
class Origin:
    """What a video was made of. subjects: the digest or id of each, in slot order."""

    video_id: str
    model_digest: str
    prompt: str
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sealed:
    """A signed mp4, the sha256 of its frames before they were marked, and the mark, in hex."""

    content: bytes
    frames_sha256: str
    mark: str

    def told(self) -> dict[str, str]:
        """For the job's result: with it anybody can check that two jobs made the same frames."""
        return {"frames_sha256": self.frames_sha256, "watermark": self.mark}


@dataclass(frozen=True)
class Account:
    """What a file's manifest says. problems: C2PA's codes, empty where it holds.

    trusted: the signer's chain ends in a root that was given. generation: Troupe's own assertion,
    empty in the files of others. made_by_ai: an action with that source type is claimed.
    """

    signed: bool = False
    valid: bool = False
    trusted: bool = False
    problems: tuple[str, ...] = ()
    signer: str = ""
    made_by_ai: bool = False
    generation: dict[str, Any] = field(default_factory=dict)


class Provenance:
    """A worker's seal."""

    def __init__(self, signing: Signing) -> None:
        self._signing = signing

    @classmethod
    def load(cls, folder: Path | None, own: Path) -> "Provenance":
        """Signs with what lies in the operator's `folder`; without one with a chain of our own.

        Raises:
            SigningError: a file is missing, open to others or unfit; the message says which.
        """
        return cls(signing.load(signing.make(own) if folder is None else folder))

    @property
    def signer(self) -> str:
        """Whose certificate it is, in words."""
        made = self._signing.self_made
        return "a self-made certificate, in no trust list" if made else "the operator's certificate"

    def seal(self, video: "Video", origin: Origin) -> Sealed:
        """The video as an mp4 for viewing, marked and signed.

        Raises:
            SigningError: no signature, hence no video.
            VideoError: the encoder or its scratch disk refused.
        """
        payload, frames = watermark.payload_of(origin.video_id), video.sha256()
        content = video.mp4(video.view_scale(), payload)
        manifest = self._manifest(origin, frames, payload.hex())
        return Sealed(self._signed(content, manifest), frames, payload.hex())

    def _signed(self, content: bytes, manifest: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        info = c2pa.C2paSignerInfo(
            c2pa.C2paSigningAlg.ES256,
            self._signing.chain.encode(),
            self._signing.key.encode(),
            None,  # no time stamp: signing needs no network
        )
        try:
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest) as builder:
                builder.sign(signer, FORMAT, io.BytesIO(content), out)
        except c2pa.C2paError as error:
            raise SigningError(f"the video could not be signed: {error}") from error
        account = read(out.getvalue())
        if not account.valid:
            raise SigningError(f"the video's signature does not hold: {account.problems}")
        return out.getvalue()

    def _manifest(self, origin: Origin, frames: str, mark: str) -> dict[str, Any]:
        agent = {"name": "Troupe", "version": version("troupe")}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        actions = [
            {
                "action": "c2pa.created",
                "when": now,
                "softwareAgent": agent,
                "digitalSourceType": AI,
            },
            {"action": "c2pa.watermarked.unbound", "when": now, "softwareAgent": agent},
        ]
        generation = {
            "statement": "AI-generated",
            "video_id": origin.video_id,
            "model_digest": origin.model_digest,
            "prompt_sha256": sha256(origin.prompt.encode()).hexdigest(),
            "subjects": list(origin.subjects),
            "frames_sha256": frames,
            "watermark": mark,
            "time": now,
            "signer": self.signer,
        }
        return {
            "claim_generator_info": [agent],
            "title": f"{origin.video_id}.mp4",
            "format": FORMAT,
            "assertions": [
                {"label": ACTIONS, "created": True, "data": {"actions": actions}},
                {"label": GENERATION, "created": True, "data": generation},
            ],
        }


def read(content: bytes, trust: str = "") -> Account:
    """What an mp4's manifest says, checked without a network.

    Args:
        trust: PEM of the roots to trust; none: whether a signature holds is told, not whose it is.
    """
    asked: dict[str, Any] = {**OFFLINE}
    if trust:
        asked["trust"] = {"user_anchors": trust}
        asked["verify"] = {**asked["verify"], "verify_trust": True}
    try:
        with c2pa.Context.from_dict(asked) as context:
            reader = c2pa.Reader.try_create(FORMAT, io.BytesIO(content), context=context)
            if reader is None:
                return Account()
            with reader:
                return _account(json.loads(reader.json()))
    except c2pa.C2paError as error:
        return Account(problems=(str(error),))


def _account(told: dict[str, Any]) -> Account:
    active = told["manifests"][told["active_manifest"]]
    problems = tuple(one["code"] for one in told.get("validation_status", ()))
    data = {one["label"]: one["data"] for one in active.get("assertions", ())}
    actions = data.get(ACTIONS, {}).get("actions", [])
    state = told.get("validation_state")
    return Account(
        signed=True,
        valid=state in ("Valid", "Trusted"),
        trusted=state == "Trusted",
        problems=tuple(code for code in problems if code != UNTRUSTED),
        signer=str(active.get("signature_info", {}).get("issuer", "")),
        made_by_ai=any(one.get("digitalSourceType") == AI for one in actions),
        generation=data.get(GENERATION, {}),
    )
