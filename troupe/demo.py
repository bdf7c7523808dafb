"""`troupe demo`: the whole service on this machine, one video of the examples, and nothing left."""

import json
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from troupe.processes import ChildFailed, Supervisor
from troupe.stack import Plan, Stack, Stopped
from troupe.terminal import err, fail, out, progress_bar
from troupe.up import MODEL, own_redis_url, start, stop_on_signals, tell_restart

EXAMPLES = Path("examples")
POLL_S = 0.3


class DemoFailed(Exception):
    """The service refused the example or could not make it; the message is the service's own."""


def demo(
    examples: Annotated[Path, typer.Option(help="Folder with prompt.txt and NAME.png.")] = EXAMPLES,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the result.")] = Path("out"),
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL,
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes any free one.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 7,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; fewer is faster.")] = None,
) -> None:
    """Start the service, make one video of examples/, write it to out/, stop the service.

    Gateway, Redis, Celery worker and reaper are real processes; the video is asked for over HTTP.
    """
    fields, pictures = read_examples(examples)
    fields["seed"] = str(seed)
    if steps is not None:
        fields["steps"] = str(steps)
    stop = stop_on_signals()
    with (
        tempfile.TemporaryDirectory(prefix="troupe-demo-") as state,
        Supervisor(tell_restart) as supervisor,
    ):
        try:
            plan = Plan("127.0.0.1", port, Path(state), model, own_redis_url())
            stack = start(plan, supervisor, stop)
            out.print(f"The studio page is served at {stack.url}/ (with `make up` it stays)")
            video = make(stack, fields, pictures, stop)
            keep(stack.url, video, out_dir)
        except Stopped:
            fail("Stopped before the video was finished.")
        except (ChildFailed, DemoFailed) as error:
            fail(str(error), "troupe doctor")
        except httpx.HTTPError as error:
            fail(f"The gateway does not answer: {error}", "troupe doctor")
        err.print("Stopping the service")
    tell(video, out_dir)


def read_examples(folder: Path) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """Form fields and pictures (file name, bytes) of the example; each picture's stem is a name."""
    prompt = folder / "prompt.txt"
    paths = sorted(folder.glob("*.png"))
    if not prompt.is_file() or not paths:
        fail(f"{folder} holds no example (prompt.txt and pictures).", "Run from the checkout.")
    text = prompt.read_text().strip()
    # The order in which the prompt names them is the order of the cast.
    paths.sort(key=lambda path: text.find(f"@{path.stem}"))
    subjects = [{"name": path.stem, "image": path.name} for path in paths]
    fields = {"prompt": text, "subjects": json.dumps(subjects)}
    return fields, [(path.name, path.read_bytes()) for path in paths]


def make(
    stack: Stack, fields: dict[str, str], pictures: list[tuple[str, bytes]], stop: threading.Event
) -> dict[str, Any]:
    """Submit, follow to the end with a progress bar, and return the service's final answer.

    Raises DemoFailed with the service's own words, Stopped when `stop` is set.
    """
    files = [("images", (name, data, "image/png")) for name, data in pictures]
    answer = httpx.post(f"{stack.url}/v1/videos", data=fields, files=files, timeout=60.0)
    video = _checked(answer)
    err.print(f'"{video["prompt"]}"', style="italic", markup=False)
    with progress_bar() as bar:
        task = bar.add_task("queued", total=100)
        while video["status"] in {"queued", "in_progress"}:
            if stop.wait(POLL_S):
                raise Stopped
            stack.supervisor.check()
            video = _checked(httpx.get(f"{stack.url}/v1/videos/{video['id']}", timeout=30.0))
            bar.update(task, completed=video["progress"], description=_words(video))
    if video["status"] != "completed":
        raise DemoFailed(f"The video could not be made: {video['error']['message']}")
    return video


def keep(url: str, video: dict[str, Any], folder: Path) -> None:
    """Write demo.mp4, demo.png (the contact sheet) and demo.json (the final answer)."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant, name in (("video", "demo.mp4"), ("spritesheet", "demo.png")):
        path = f"{url}/v1/videos/{video['id']}/content"
        answer = httpx.get(path, params={"variant": variant}, timeout=60.0)
        if answer.status_code != 200:
            _checked(answer)
        (folder / name).write_bytes(answer.content)
    (folder / "demo.json").write_text(json.dumps(video, indent=2) + "\n")


def tell(video: dict[str, Any], folder: Path) -> None:
    """Where the result lies, and what it is."""
    took = video["timings"]["total_s"]
    out.print(f"[bold green]Done[/] in {took:.0f} s: a video of {video['seconds']} seconds.")
    out.print(f"  {folder / 'demo.mp4'}   the video", markup=False)
    out.print(f"  {folder / 'demo.png'}   the pictures beside frames of it", markup=False)
    out.print(f"  {folder / 'demo.json'}  the service's answer", markup=False)
    out.print("To make your own in the studio page: [bold]make up[/]")


def _checked(answer: httpx.Response) -> dict[str, Any]:
    """The body of a good answer. Raises DemoFailed with the service's message of a bad one."""
    if answer.is_success:
        body: dict[str, Any] = answer.json()
        return body
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the service answers {answer.status_code}"
    raise DemoFailed(message)


def _words(video: dict[str, Any]) -> str:
    """Stage, step and time to go, for the progress bar."""
    words = [str(video["stage"])]
    if video["stage"] == "denoise" and video["step"] is not None:
        words.append(f"{video['step']}/{video['steps']}")
    if video["eta_s"] is not None:
        words.append(f"about {video['eta_s']:.0f} s to go")
    return " ".join(words)
