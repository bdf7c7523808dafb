"""`python -m bench.fuzz`: requests made up from the interface's own document, until one breaks it.

schemathesis reads /openapi.json of a real gateway and sends what the document allows and what it
forbids, and half of a character in one body of JSON in eight (`bench.fuzz_hooks`). No answer may be
a server error, and none may have a status that the document does not name. /readyz is left out: a
503 is what it is for.

The last line is a JSON object: cases, failures (of both kinds), operations.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from bench.stage import stage

CHECKS = "not_a_server_error,status_code_conformance"
_CASES = re.compile(r"^\s*(\d+) generated, (?:(\d+) found|\d+ passed)", re.MULTILINE)
_OPERATIONS = re.compile(r"^\s*Tested: (\d+)", re.MULTILINE)


def run(
    examples: int, seed: int, phases: str = "coverage,fuzzing", timeout_s: int = 30
) -> dict[str, Any]:
    """The whole experiment. examples: at most so many made up for each operation. timeout_s: an
    answer that takes longer, as of who waits for a video or for events, is not looked at.

    Raises:
        RuntimeError: schemathesis did not get as far as a summary; its words are the message.
    """
    with stage(gateways=1, workers=0) as place:
        place.start("gateway-1")
        place.wait(lambda: _answers(place.urls[0]))
        report = _schemathesis(place.urls[0], examples, seed, phases, timeout_s)
    return summary(report)


def _schemathesis(url: str, examples: int, seed: int, phases: str, timeout_s: int) -> str:
    program = Path(sys.executable).with_name("schemathesis")
    command = [
        *(str(program), "run", f"{url}/openapi.json", "--phases", phases, "--checks", CHECKS),
        *("--max-examples", str(examples), "--seed", str(seed), "--exclude-path", "/readyz"),
        *("--request-timeout", str(timeout_s), "--generation-database", "none", "--no-color"),
    ]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "bench.fuzz_hooks"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done.stdout + done.stderr


def summary(report: str) -> dict[str, Any]:
    """What a report of schemathesis counts. Raises RuntimeError where it counts nothing."""
    cases, operations = _CASES.search(report), _OPERATIONS.search(report)
    if cases is None or operations is None:
        raise RuntimeError(f"schemathesis gave no summary:\n{report[-2000:]}")
    failures = int(cases[2] or 0)
    if failures:
        print(report)
    return {"cases": int(cases[1]), "failures": failures, "operations": int(operations[1])}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.fuzz")
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args()
    print(json.dumps(run(asked.examples, asked.seed)))


if __name__ == "__main__":
    main()
