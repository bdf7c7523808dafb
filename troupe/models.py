"""`troupe models`: publish models, lead channels to them, and take that back."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from engine.channels import CANARY, STABLE, Channel
from engine.errors import CheckpointError, RegistryError, SigningError, UnverifiedError
from engine.evaluation import reached, shortfalls
from engine.folders import Manifest, read_manifest
from engine.registry import Address, Registry, base_of
from engine.stores import open_store
from service.fleet import Fleet
from troupe.access import operating
from troupe.terminal import err, fail, out
from workers.settings import Settings

models = typer.Typer(no_args_is_help=True, help="Publish models and lead channels to them.")
OWN = ".troupe/registry"
DAY_S = 86400
At = Annotated[
    str,
    typer.Option(
        "--at",
        help=f"Registry: a folder or s3://bucket/prefix, with ?key=PUBLIC.pem where models must be"
        f" signed. Without: that of TROUPE_MODEL_DIR, else {OWN}.",
    ),
]
Ref = Annotated[str, typer.Argument(help="A channel, a digest, or its first letters.")]
Worse = Annotated[bool, typer.Option(help="Also where it keeps characters less far.")]
Note = Annotated[str, typer.Option(help="Why, for the channel's history.")]


@contextmanager
def opened(at: str) -> Iterator[Registry]:
    """The registry. Every error of it ends the command with its words."""
    try:
        address = Address.parse(f"{at}#{STABLE}" if at else str(Settings().model_dir))
        yield address.open() if address else Registry(open_store(OWN))
    except (RegistryError, CheckpointError, SigningError) as error:
        fail(str(error))


@models.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A model folder, or an adapter's.")],
    at: At = "",
    key: Annotated[Path | None, typer.Option(help="PEM of the private key to sign with.")] = None,
    golden: Annotated[
        bool, typer.Option(help="Run a small request first; workers compare what it looks like.")
    ] = False,
) -> None:
    """Publish a model folder; prints its digest. No channel moves."""
    with opened(at) as registry, TemporaryDirectory(prefix="troupe-push-") as cache:
        told = _golden(registry, folder, Path(cache)) if golden else {}
        print(registry.push(folder, key, told))


@models.command(name="list")
def listing(
    at: At = "", as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """All published models, the latest first, and the channels that lead to them."""
    with opened(at) as registry:
        channels = [registry.channels.read(name) for name in registry.channels.names()]
        found = [
            (one, *_seen(registry, one.digest), [c for c in channels if c.digest == one.digest])
            for one in registry.models().values()
        ]
    if as_json:
        rows = [
            {**asdict(one), "preset": manifest.preset, "channels": [c.name for c in led]}
            | ({"unusable": wrong} if wrong else {})
            for one, manifest, wrong, led in found
        ]
        print(json.dumps(rows))
        return
    table = Table("model", "preset", "published", "MB", "kept", "channels", box=None)
    for one, manifest, _, led in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.written_s))
        row = (one.digest[:12], manifest.preset, day, f"{one.size / 1e6:.1f}", _kept(manifest))
        table.add_row(*map(escape, (*row, ", ".join(map(_led, led)))))
    out.print(table)
    for one, _, wrong, _ in found:
        if wrong:
            err.print(f"{one.digest[:12]} cannot be used: {wrong}", markup=False)


@models.command()
def show(ref: Ref = STABLE, at: At = "") -> None:
    """A model's manifest as JSON; of a channel, its history too."""
    with opened(at) as registry:
        digest = registry.find(ref)
        told = {"digest": digest, **json.loads(registry.manifest(digest).to_bytes())}
        if ref in registry.channels.names():
            told["channel"] = [asdict(line) for line in registry.channels.read(ref).lines]
    print(json.dumps(told, indent=2))


@models.command()
def diff(one: Ref, other: Ref, at: At = "") -> None:
    """What differs between two models: files, numbers, origin, and how far they keep characters."""
    with opened(at) as registry:
        first, second = (registry.manifest(registry.find(ref)) for ref in (one, other))
    for name in sorted(first.files.keys() | second.files.keys()):
        if first.files.get(name) != second.files.get(name):
            there = [name in manifest.files for manifest in (first, second)]
            word = "changed" if all(there) else "removed" if there[0] else "added"
            out.print(f"{word}: {name}", markup=False)
    for field in ("preset", "configs", "lineage"):
        before, after = getattr(first, field), getattr(second, field)
        if before != after:
            out.print(f"{field}: {json.dumps(before)} -> {json.dumps(after)}", markup=False)
    before, after = reached(first.evaluation), reached(second.evaluation)
    for num in sorted(before.keys() | after.keys()):
        told = [f"{found[num][0]:.3f}" if num in found else "-" for found in (before, after)]
        out.print(f"kept, {num} subjects: {' -> '.join(told)}", markup=False)
    for word in shortfalls(second.evaluation, first.evaluation):
        out.print(f"{other}: {word}", markup=False)


@models.command()
def promote(
    ref: Ref = CANARY, at: At = "", channel: str = STABLE, note: Note = "", worse: Worse = False
) -> None:
    """Lead a channel to a model: all workers of the channel load it. Ends its canary."""
    with opened(at) as registry:
        digest, now = registry.find(ref), registry.channels.read(channel)
        _check(registry, digest, now, worse)
        registry.channels.move(channel, digest, note, expect=now.digest)
        if channel != CANARY and registry.channels.read(CANARY).digest == digest:
            registry.channels.move(CANARY, "", f"promoted to {channel}", expect=digest)
    err.print(f"{channel} leads to {digest[:12]}.", markup=False)


@models.command()
def canary(
    ref: Annotated[str, typer.Argument(help="A digest, or its first letters; empty: none.")] = "",
    at: At = "",
    share: Annotated[float, typer.Option(help="Of the jobs, 0 to 1.")] = 0.05,
    note: Note = "",
    worse: Worse = False,
) -> None:
    """Give a model a share of the jobs; without a model, end that."""
    with opened(at) as registry:
        digest = registry.find(ref) if ref else ""
        if digest:
            _check(registry, digest, registry.channels.read(STABLE), worse)
        registry.channels.move(CANARY, digest, note, share)
    told = f"{share:.0%} of the jobs go to {digest[:12]}." if digest else "No canary any more."
    err.print(told, markup=False)


@models.command()
def rollback(at: At = "", channel: str = STABLE, note: Note = "") -> None:
    """Lead a channel to the model that it led to before."""
    with opened(at) as registry:
        moved = registry.channels.roll_back(channel, note)
    err.print(f"{channel} leads to {moved.digest[:12]} again.", markup=False)


@models.command()
def verify(ref: Ref = STABLE, at: At = "") -> None:
    """Fetch a model and check every byte, its signature where one is asked for, and its base."""
    with opened(at) as registry, TemporaryDirectory(prefix="troupe-verify-") as folder:
        digest = registry.find(ref)
        wanted = [digest, base_of(registry.manifest(digest))]
        for one in filter(None, wanted):
            registry.pull(one, Path(folder))
            out.print(f"{one[:12]}: every file is as published.", markup=False)


@models.command()
def pull(ref: Ref = STABLE, at: At = "") -> None:
    """Fetch a model into this machine's own folder for them, or check every byte of what is there,
    and of its base. What a worker does as it starts; for a container that runs before it. Where a
    channel's model is damaged or not signed, the one before it, as the worker will."""
    with opened(at) as registry:
        *others, last = registry.led(ref)
        for digest in others:
            try:
                _pull(registry, digest)
                return
            except (CheckpointError, UnverifiedError) as error:
                err.print(f"{digest[:12]} is passed over: {error}", markup=False)
        _pull(registry, last)


def _pull(registry: Registry, digest: str) -> None:
    for one in filter(None, (digest, base_of(registry.manifest(digest)))):
        print(registry.pull(one, Settings().model_cache))


@models.command()
def prune(
    at: At = "",
    days: Annotated[float, typer.Option(help="Keep what is younger.")] = 7.0,
    keep: Annotated[int, typer.Option(help="Keep so many models of each channel's past.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
) -> None:
    """Remove old models that no channel leads to, led to lately, or is based on."""
    with opened(at) as registry:
        for one in registry.models().values():
            # Read again for each: somebody may lead a channel to it meanwhile.
            young = time.time() - one.written_s < days * DAY_S
            if young or one.digest in _wanted(registry, keep):
                continue
            if not dry_run:
                registry.remove(one.digest)
            out.print(f"{one.digest[:12]}: {one.size / 1e6:.1f} MB", markup=False)


@models.command()
def release(
    digest: Annotated[str, typer.Argument(help="Of a model in quarantine, or its first letters.")],
) -> None:
    """Let workers try a model again that they have put in quarantine."""
    with operating() as (client, settings):
        fleet = Fleet(client, settings)
        found = [one for one in fleet.quarantined() if one.startswith(digest)]
        if len(found) != 1:
            fail(f"{len(found)} models in quarantine begin with {digest}")
        fleet.release(found[0])
    err.print(f"{found[0][:12]} may be served again.", markup=False)


@models.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The model folder that the adapter changes.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    target: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
) -> None:
    """Make a model folder of an adapter and its base."""
    from engine.adapters import merge as run
    from engine.folders import check_new

    try:
        check_new(target)
        manifest = run(base, adapter, target)
    except CheckpointError as error:
        fail(str(error))
    out.print(f"{target}: {len(manifest.files)} files, {manifest.digest()[:12]}", markup=False)


def _golden(registry: Registry, folder: Path, cache: Path) -> dict[str, Any]:
    """What the small request looks like with a model, or with an adapter on its published base."""
    from engine.golden import told

    base = base_of(read_manifest(folder))
    return told(folder, None if base is None else registry.pull(base, cache))


def _seen(registry: Registry, digest: str) -> tuple[Manifest, str]:
    """A published model's manifest, an empty one where there is none, and why it cannot be used."""
    try:
        manifest = registry.manifest(digest)
        base_of(manifest)
        return manifest, ""
    except (CheckpointError, UnverifiedError) as error:
        return Manifest("-"), str(error)


def _check(registry: Registry, digest: str, now: Channel, worse: bool) -> None:
    """Ends the command where the model is worse than the one that a channel leads to now."""
    manifest = registry.manifest(digest)
    if worse or not now.digest or now.digest == digest:
        return
    told = shortfalls(manifest.evaluation, registry.manifest(now.digest).evaluation)
    if told:
        fail(f"{digest[:12]} is worse than {now.name}: {'; '.join(told)}", "Say --worse to insist.")


def _wanted(registry: Registry, keep: int) -> set[str]:
    """Digests that channels lead to or led to lately, and the bases of those."""
    found: set[str] = set()
    for name in registry.channels.names():
        led = [line.digest for line in registry.channels.read(name).lines if line.digest]
        found |= set(list(dict.fromkeys(reversed(led)))[: max(keep, 1)])
    there, plain = registry.models(), Registry(registry.store)  # also the base of what is unsigned
    seen = [_seen(plain, digest)[0] for digest in found if digest in there]
    return found | {base for base in map(base_of, seen) if base}


def _kept(manifest: Manifest) -> str:
    return " ".join(f"{value:.2f}" for value, _ in reached(manifest.evaluation).values()) or "-"


def _led(channel: Channel) -> str:
    return channel.name if channel.share == 1.0 else f"{channel.name} {channel.share:.0%}"
