"""Old models leave a machine's disk.

Workers of one machine share a folder of models. Each touches those that it serves or may serve at
every look at its channels; what nobody has touched for an hour nobody serves, and it can be fetched
again. The last one stays: it may be what the next worker begins with while the store is away. Where
models are published faster than that, a few spare ones stay, and no more.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)
UNUSED_S = 3600.0
FRESH_S = 300.0  # somebody may be about to use it, who cannot look at channels meanwhile
SPARE = 3  # of those that nobody uses: the last ones


def tidy(cache: Path, used: Iterable[Path]) -> list[str]:
    """Touch what is used, remove what is not any more; the names of what was removed.

    Args:
        cache: folders of models, as `engine.adapters.pull` leaves them.
        used: those of them that this worker serves or may serve.
    """
    now, gone = time.time(), []
    for folder in used:
        if folder.exists():
            os.utime(folder)
    if not cache.is_dir():
        return []
    found = [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found.sort(key=lambda path: path.stat().st_mtime)
    ages = {path: now - path.stat().st_mtime for path in found[:-1]}
    spare = [path for path in ages if ages[path] > FRESH_S]
    for path in spare:
        if ages[path] > UNUSED_S or path not in spare[-SPARE:]:
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path.name)
            log.info("%s was not used for %.0f s: removed from this machine", path.name, ages[path])
    return gone
