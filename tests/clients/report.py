"""Runs a client's checks inside its environment and writes down what they saw.

`check.py` of a client runs there as `python -m tests.clients.NAME.check TASK`, where TASK is a
`Task` as JSON, and leaves `report.json` in the working directory:

    {"checks": {NAME: what it returned, or {"failed": traceback}}, "outside": [hosts]}

Nothing but the standard library is known here. `report.mjs` does the same for node.
"""

import asyncio
import ipaddress
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Check = Callable[[Any], Any]  # of a task, a `Task` unless the client has one of its own
C = TypeVar("C", bound=Check)


@dataclass(frozen=True)
class Task:
    """What all clients do the same way, so that their answers can be compared."""

    base_url: str  # with /v1
    model: str
    question: str  # for a chat; answered at temperature 0, with max_tokens
    prompt: str  # for a completion, likewise
    max_tokens: int
    texts: list[str]  # to embed
    request: str  # what a schema or a tool is to answer; see trip.py
    result: str  # of the tool `book_trip`


_checks: dict[str, Check] = {}
_outside: list[str] = []


def check(function: C) -> C:
    """Register `function(task)`, sync or async; it returns what it saw, for JSON."""
    _checks[function.__name__] = function
    return function


def main() -> None:
    write_report(Task(**json.loads(sys.argv[1])))


def write_report(task: Any) -> None:
    """Of all checks, given `task`."""
    sys.addaudithook(_watch)
    with asyncio.Runner() as runner:  # one loop for all: clients keep connections
        seen = {name: _run(function, task, runner) for name, function in _checks.items()}
    report = {"checks": seen, "outside": sorted(set(_outside))}
    Path("report.json").write_text(json.dumps(report), encoding="utf-8")


def _run(function: Check, task: Any, runner: asyncio.Runner) -> Any:
    try:
        seen = function(task)
        return runner.run(seen) if asyncio.iscoroutine(seen) else seen
    except Exception:
        return {"failed": traceback.format_exc()}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Whoever is asked for or connected to beyond this machine is noted and refused."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not _is_local(host):
        _outside.append(str(host))
        raise PermissionError(f"this client wants to reach {host}")


def _is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
