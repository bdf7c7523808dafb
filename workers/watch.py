"""The channel of a worker that only encodes: it serves every model with the encoders that it has,
so there is nothing to fetch; where the channel's model has others, it says so."""

import logging

from engine.errors import CheckpointError, RegistryError
from engine.registry import Address, base_of

log = logging.getLogger(__name__)


class Watch:
    """One address."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._seen = ""  # where it led when it was last looked at
        self._message = ""

    def look(self, encoders: str) -> str:
        """Why other encoders are needed than these; empty: they are not.

        encoders: see `engine.encoder.digest_of`.
        """
        from engine.encoder import digest_of

        try:
            registry = self._address.open()
            digest = registry.find(self._address.ref)
            if digest == self._seen:
                return self._message
            manifest = registry.manifest(digest)
            base = base_of(manifest)
            found = digest_of(manifest if base is None else registry.manifest(base))
        except (RegistryError, CheckpointError) as error:
            log.warning("channels not seen: %s", error)
            return str(error)
        told = f"the encoders of {digest[:12]} are others: it needs a new worker"
        self._message, self._seen = "" if found == encoders else told, digest
        return self._message
