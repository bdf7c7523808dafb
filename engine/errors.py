"""What can go wrong, as one tree.

TroupeError
├── SpecError         the request asks for something that cannot be done; `field` names the culprit
├── CheckpointError   a model folder is incomplete, altered or of another shape
├── EncodingError     a picture or a prompt could not be turned into model input
├── BackendError      a way of computing that was asked for cannot be had here
├── StateError        a saved state of a run must not be gone on from; the run starts anew
├── VideoError        frames could not be written as a video, or a video could not be read
├── RegistryError     models cannot be published, found or fetched; says which and why
│   └── UnverifiedError   nobody whose word counts vouches for one
├── SigningError      a video could not be signed: no key, no certificate, or the signature failed
└── Cancelled         somebody asked for the work to stop; not a fault

`SpecError` is also a ValueError: it is the caller's value that is wrong. A programmer's mistake is
an AssertionError and has no place in this tree.
"""


class TroupeError(Exception):
    """Root of every error that this project raises on purpose."""


class SpecError(TroupeError, ValueError):
    """A request that cannot be served.

    Args:
        field: the field of the request that is wrong, as the caller wrote it, e.g. `num_frames`.
        message: what is wrong and what would be right, in one sentence.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class CheckpointError(TroupeError):
    """A model folder that must not be used; the message names the file or the key."""


class EncodingError(TroupeError):
    """Input that the encoders cannot take; the message names it."""


class BackendError(TroupeError):
    """A compile mode or an attention kernel that cannot be used; the message says what to do."""


class StateError(TroupeError):
    """A saved state that is damaged, or of another run; the message says which."""


class VideoError(TroupeError):
    """A video that cannot be written or read."""


class RegistryError(TroupeError):
    """A registry that cannot be used, or a model or channel that is not in it as wanted."""


class UnverifiedError(RegistryError):
    """Nobody whose word counts here vouches for the model."""


class SigningError(TroupeError):
    """A key or certificate that cannot be used, or a video that it cannot sign."""


class Cancelled(TroupeError):
    """Raised inside a running generation to stop it at the next step."""
