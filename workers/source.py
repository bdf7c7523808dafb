"""Jobs that begin with a video: edits, remixes and extensions.

The gateway stores the source as plain frames (`service.decode_video.pack`) and writes in the
request, under "edit": `key` of that blob, `strength`, and `keep_frames`. With keep_frames = 0 the
run starts from the whole source (`engine.edit`). Otherwise the source's last keep_frames are what
the new video begins with, and what is given in the end is the source followed by the new frames.
"""

from typing import TYPE_CHECKING, Any

from engine.spec import Spec
from service import blobs as store
from service.decode_video import unpack
from service.errors import BlobMissing
from workers.boot import Station

if TYPE_CHECKING:
    from engine.edit import Edit
    from engine.video import Frames, Video


def edit_of(place: Station, request: dict[str, Any], spec: Spec) -> "Edit | None":
    """What the engine starts from; None for a job that starts from noise.

    Raises:
        BlobMissing: the source is not there, or is not what the gateway stored.
        BlobError: the store refuses.
    """
    told = request.get("edit")
    if told is None:
        return None
    from engine.edit import Edit
    from engine.video import Video

    frames, keep = _frames(place, told["key"]), told["keep_frames"]
    if keep:
        return continued(frames[-keep:], spec)
    # As many as there are of the form 4k + 1.
    return Edit(Video(frames[: spec.num_frames], spec.fps), told["strength"])


def continued(known: "Frames", spec: Spec) -> "Edit":
    """Known frames [k, H, W, 3] to begin with, the rest of spec.num_frames to be made."""
    import numpy as np

    from engine.edit import Edit
    from engine.video import Video

    # What stands behind the known frames is not read: the mask hides it, and the VAE is causal.
    rest = np.repeat(known[-1:], spec.num_frames - len(known), axis=0)
    mask = np.zeros((spec.num_frames, spec.height, spec.width), bool)
    mask[len(known) :] = True
    return Edit(Video(np.concatenate([known, rest]), spec.fps), 1.0, mask)


def finished(place: Station, request: dict[str, Any], video: "Video") -> "Video":
    """What the client gets of what the engine has made: of an extension, the source before it.

    Raises:
        BlobError: as `edit_of`.
    """
    told = request.get("edit")
    if told is None or not told["keep_frames"]:
        return video
    return joined(_frames(place, told["key"]), video, told["keep_frames"])


def joined(source: "Frames", video: "Video", keep: int) -> "Video":
    """The source, then what is new in the video, whose first `keep` frames are the source's last.

    Over these the one fades into the other: they differ by what the VAE loses, and a cut would
    show it.
    """
    from dataclasses import replace

    import numpy as np

    new = np.linspace(0, 1, keep + 2)[1:-1, None, None, None]
    faded = (1 - new) * source[-keep:] + new * video.frames[:keep]
    parts = [source[:-keep], np.rint(faded).astype(np.uint8), video.frames[keep:]]
    return replace(video, frames=np.concatenate(parts))


def _frames(place: Station, key: str) -> "Frames":
    import numpy as np

    try:
        clip = unpack(store.get(place.blobs, key))
    except ValueError as error:
        raise BlobMissing(f"The stored source cannot be read: {error}") from error
    return np.frombuffer(clip.rgb, np.uint8).reshape(clip.frames, clip.height, clip.width, 3)
