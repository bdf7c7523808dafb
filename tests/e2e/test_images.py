"""The images' own commands over compose's environment, as a user who may write nothing: each in the
tree that its COPY lines make, over a real Valkey and rclone as the S3 server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import s3
from tests.docker.dockerfile import command, environment, lay_out
from tests.docker.test_compose import SERVICES
from tests.service.rig import free_port, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]
USER = 10001


def _as_nobody() -> list[str]:
    """A prefix for commands: user 10001, as in the image. Whoever is no root here is none there."""
    if os.getuid():
        return []
    prefix = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody be another user (unshare --user)")
    return prefix


class Machine:
    """Processes as `docker compose up` starts them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.prefix, self.folder = _as_nobody(), folder
        self.port = free_port()
        self._settings = settings
        self._running: list[subprocess.Popen[bytes]] = []

    def env(self, image: str, name: str) -> dict[str, str]:
        """The image's, compose's over it; the addresses of Redis and of the store are this test's,
        and so is /tmp."""
        found = environment(image) | SERVICES[name]["environment"]
        # ${NAME:-value} is the value where nobody says otherwise.
        found = {k: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", v) for k, v in found.items()}
        scratch = self.folder / f"tmp-{name}"
        scratch.mkdir(exist_ok=True)
        return found | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(scratch),
            "HOME": str(scratch),
            "TROUPE_REDIS_URL": self._settings.redis_url,
            "TROUPE_KEY_PREFIX": self._settings.key_prefix,
            "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
            "AWS_ACCESS_KEY_ID": s3.KEY,
            "AWS_SECRET_ACCESS_KEY": s3.SECRET,
            "TROUPE_BLOBS_URL": f"s3://{s3.new_bucket()}" if name == "gateway" else self._blobs,
            "OMP_NUM_THREADS": "1",
        }

    def start(self, image: str, name: str) -> dict[str, str]:
        """One service; what its environment is."""
        app = lay_out(image, self.folder / name)
        env = self.env(image, name)
        self._blobs = env["TROUPE_BLOBS_URL"]
        # Compose mounts a folder of its own there.
        app.chmod(0o755)
        (app / ".troupe").mkdir()
        app.chmod(0o555)
        argv = SERVICES[name].get("command") or command(image)
        argv = [str(self.port) if word == "8000" else word for word in argv]
        with (self.folder / f"{name}.log").open("wb") as log:
            started = subprocess.Popen(
                [*self.prefix, *argv], env=env, cwd=app, stdout=log, stderr=log
            )
        self._running.append(started)
        return env

    def run(self, env: dict[str, str], name: str, *argv: str) -> str:
        """A command in a service's container: its output and status."""
        done = subprocess.run(
            [*self.prefix, *argv],
            env=env,
            cwd=self.folder / name / "app",
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return f"{done.stdout}{done.stderr}{done.returncode}"

    def close(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.fixture
def machine(settings: Settings, tmp_path: Path) -> Iterator[Machine]:
    with s3.rclone(tmp_path / "store"):
        made = Machine(settings, tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_a_job_goes_through_the_images_commands(machine: Machine, settings: Settings) -> None:
    machine.start("gateway", "gateway")
    env = machine.start("worker", "worker")
    machine.start("gateway", "reaper")
    assert machine.run(env, "worker", "id", "-u") == f"{os.getuid() or USER}\n0"
    assert "cannot touch" in machine.run(env, "worker", "touch", "engine/dit.py", "new")
    probe = ("python", "-m", "workers.alive", "--ready")
    wait_for(lambda: machine.run(env, "worker", *probe) == "0")

    base = f"http://127.0.0.1:{machine.port}"
    wait_for(lambda: httpx.get(f"{base}/readyz", timeout=30).status_code == 200)
    asked = {"prompt": "somebody waves", "seed": "7", "steps": "2"}
    job = httpx.post(f"{base}/v1/videos", json=asked, timeout=60)
    assert job.status_code == 202, job.text
    at = f"{base}/v1/videos/{job.json()['id']}"
    last = wait_for(lambda: _ended(httpx.get(at, timeout=60).json()))
    assert last["status"] == "completed", last
    film = httpx.get(f"{at}/content", timeout=60, follow_redirects=True)
    assert film.content[4:8] == b"ftyp"


def _ended(video: dict[str, object]) -> dict[str, object] | None:
    return video if video["status"] in {"completed", "failed"} else None
