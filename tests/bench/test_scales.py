"""What a process and its children hold is seen, also when it is given back."""

import subprocess
import sys
import time

from bench.scales import Scales

GROWS = "import sys, time; a = bytearray(80_000_000); print(1, flush=True); del a; time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
print(1, flush=True)
sys.stdin.readline()
a = bytearray(60_000_000)
child = subprocess.Popen([sys.executable, "-c", {GROWS!r}], stdout=subprocess.PIPE)
child.stdout.readline()
time.sleep(0.5)
del a
child.kill()
child.wait()
print(2, flush=True)
time.sleep(60)
"""


def test_the_most_is_seen_and_what_stays_is_not_the_most() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdout.readline()
        scales = Scales([parent.pid])
        with scales.weighing():
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            parent.stdout.readline()
            time.sleep(0.1)
        assert scales.growth > 55_000_000
        assert scales.child > 1_000_000
        assert scales.settled() < 40_000_000
        parent.kill()
