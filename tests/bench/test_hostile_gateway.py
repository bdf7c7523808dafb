"""A gateway that can connect to nothing but the bench, and asks only the bench's DNS."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.hostile_gateway import Names

TRY = """
import socket, sys
from pathlib import Path
from bench.hostile_gateway import watched
watched(Path(sys.argv[1]), f"127.0.0.1:{sys.argv[2]}")
socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5).close()
try:
    socket.create_connection(("127.0.0.1", 1), 5)
except OSError as error:
    print(error)
"""


def test_the_bench_alone_can_be_connected_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-c", TRY, str(tmp_path / "log"), str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "a room without windows" in done.stdout, done.stderr
    assert (tmp_path / "log").read_text() == f"127.0.0.1 {port}\n127.0.0.1 1\n"


def test_names_are_answered_in_turn_and_others_not_at_all() -> None:
    names = Names()
    answers = [names("rebinding.example", 443)[0][4][0] for _ in range(4)]
    assert answers == ["93.184.215.14", "169.254.169.254", "127.0.0.1", "93.184.215.14"]
    assert [one[4][0] for one in names(b"mixed.example", 443)] == ["93.184.215.14", "10.0.0.1"]
    assert names("nowhere.example", 443) == []
    assert names("10.0.0.1", 443)[0][4][0] == "10.0.0.1"
    with pytest.raises(OSError):
        names("example.com", 443)
