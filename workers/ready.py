"""A model that was pulled and may be loaded between two jobs."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.folders import Held, Manifest
    from engine.pipeline import Engine


class Ready:
    """A model that was pulled. digest: as a channel names it; manifest: of the folder that an
    engine loads (another where it is an adapter). held: its files, verified and looked at, as long
    as `close` is not called."""

    def __init__(self, digest: str, folder: Path, manifest: "Manifest") -> None:
        self.digest, self.folder, self.manifest = digest, folder, manifest
        self.held: Held | None = None
        self.weights = manifest.digest()  # what an engine with it is called
        self._stack = ExitStack()

    def check(self, engine: "Engine") -> None:
        """Beside the jobs. Raises CheckpointError or BackendError."""
        from engine import swap

        if self.held is None:
            self.held = self._stack.enter_context(swap.checked(engine, self.folder))

    def take(self, engine: "Engine") -> None:
        """Between two jobs: its weights into the engine. Raises as `engine.swap.take`."""
        from engine import swap

        if self.held is None:
            swap.swap(engine, self.folder)
        else:
            swap.take(engine, self.held)

    def close(self) -> None:
        """Let go of the files."""
        self.held = None
        self._stack.close()
