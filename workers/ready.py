"""A model that was pulled and may be loaded between two jobs."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import CheckpointError
from engine.registry import Address

if TYPE_CHECKING:
    from engine.folders import Heed, Held, Manifest
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

    @classmethod
    def pull(
        cls, address: Address, digest: str, cache: Path, heed: "Heed" = lambda: None
    ) -> "Ready":
        """Fetched and verified, an adapter merged into its base. Raises RegistryError,
        CheckpointError, and what `heed` raises."""
        from engine.adapters import pull
        from engine.folders import read_manifest

        folder = pull(address.open(), digest, cache, heed)
        manifest = read_manifest(folder)
        if folder.name == digest != manifest.digest():
            raise CheckpointError(f"{folder} holds another model by now")
        return cls(digest, folder, manifest)

    def again(self) -> "Ready":
        """The same model, not looked at yet."""
        return Ready(self.digest, self.folder, self.manifest)

    def check(self, engine: "Engine", heed: "Heed" = lambda: None) -> None:
        """Beside the jobs. Raises CheckpointError, BackendError, and what `heed` raises."""
        from engine import swap

        if self.held is not None:
            return
        with ExitStack() as stack:
            held = stack.enter_context(swap.checked(engine, self.folder, heed))
            if held.manifest.digest() != self.weights:
                raise CheckpointError(f"{self.folder} holds another model than was pulled")
            self.held, self._stack = held, stack.pop_all()

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
