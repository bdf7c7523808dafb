"""Reads docker/Dockerfile into stages, and lays out the tree that one of its images would have."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


@dataclass
class Stage:
    """One FROM and what follows: pairs of instruction and its text."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [text for one, text in self.lines if one == word]


def stages() -> dict[str, Stage]:
    """By name, in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    last: Stage | None = None
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            last = found[name] = Stage(name, base)
        elif last is not None:
            last.lines.append((word, rest.strip()))
    return found


def line_of(name: str) -> list[Stage]:
    """A stage and those that it is built on, the first one first."""
    known, found = stages(), []
    while name in known:
        found.insert(0, known[name])
        name = known[name].base
    return found


def told(name: str, word: str) -> list[str]:
    """All texts of an instruction that count for an image, in order."""
    return [text for stage in line_of(name) for text in stage.all(word)]


def command(name: str, word: str = "CMD") -> list[str]:
    """The last CMD or ENTRYPOINT, in its exec form."""
    found: list[str] = json.loads(told(name, word)[-1])
    return found


def environment(name: str) -> dict[str, str]:
    """What ENV sets."""
    pairs = [part for text in told(name, "ENV") for part in text.split()]
    return dict(part.partition("=")[::2] for part in pairs)


def lay_out(name: str, folder: Path) -> Path:
    """The image's /app below `folder`, from what its COPY lines take of the checkout; nobody may
    write in it."""
    app = folder / "app"
    for text in told(name, "COPY"):
        words = [word for word in text.split() if not word.startswith("--chmod")]
        if words[0].startswith("--from"):
            continue
        *sources, target = words
        assert target.startswith("/app/"), text
        for source in sources:
            given, place = ROOT / source, folder / target.lstrip("/")
            if given.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(given, place, ignore=ignored)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(given, place)
    for path in [app, *app.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return app
