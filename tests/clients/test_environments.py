"""The machinery of the client tests itself, without a client."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.clients import environments
from tests.clients.report import Task

TASK = Task("http://127.0.0.1:1/v1", "m", "q", "p", 1, ["t"], "r", "s")

CHECKS = """
import asyncio, socket
from tests.clients.report import check, main

@check
def name(task):
    return {"model": task.model}

@check
async def later(task):
    await asyncio.sleep(0)
    return 1

@check
def local(task):
    socket.create_server(("127.0.0.1", 0)).close()
    return socket.getaddrinfo("localhost", 80) and None

@check
def looks_up(task):
    try:
        socket.getaddrinfo("telemetry.invalid", 443)
    except OSError:
        pass  # as libraries do that report behind one's back

@check
def connects(task):
    socket.create_connection(("192.0.2.1", 443))

main()
"""

MODULE = """
import net from "node:net";
import { main } from "./report.mjs";
const connects = (port, host) => async () => {
  await new Promise((done, fail) => net.connect(port, host).on("connect", done).on("error", fail));
};
await main({
  name: async (task) => ({ model: task.model }),
  looks_up: async () => { await fetch("http://telemetry.invalid/").catch(() => 0); return 1; },
  connects: connects(443, "192.0.2.1"),
  local: connects(1, "127.0.0.1"),
});
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client that needs nothing."""
    monkeypatch.setattr(environments, "HERE", tmp_path / "clients")
    monkeypatch.setenv("LLMSERVE_TEST_CLIENTS", str(tmp_path / "cache"))
    folder = tmp_path / "clients/tiny"
    folder.mkdir(parents=True)
    (folder / "requirements.txt").write_text("# nothing\n")
    return folder


def test_an_environment_is_made_once_for_each_lock(client: Path, tmp_path: Path) -> None:
    made = environments.environment("tiny")
    assert environments.run([made / "bin/python", "-c", "import sys; print(sys.prefix)"], made) == (
        f"{made}\n"
    )
    (made / "mark").touch()
    assert environments.environment("tiny") == made
    assert (made / "mark").exists()
    (client / "requirements.txt").write_text("# something else\n")
    other = environments.environment("tiny")
    assert other != made
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        [made.name, other.name]
    )


def test_an_environment_whose_python_is_gone_is_made_again(client: Path) -> None:
    made = environments.environment("tiny")
    (made / "bin/python").unlink()
    (made / "bin/python").symlink_to("/nowhere/python")
    assert environments.environment("tiny") == made
    assert (made / "bin/python").exists()


def test_a_failed_installation_leaves_nothing(client: Path, tmp_path: Path) -> None:
    (client / "requirements.txt").write_text("./no-such-folder\n")
    with pytest.raises(AssertionError, match="no-such-folder"):
        environments.environment("tiny")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_second_of_two_builders_takes_what_is_there(client: Path, tmp_path: Path) -> None:
    made = environments.environment("tiny")
    (made / "mark").touch()
    shutil.copytree(made, tmp_path / "later", symlinks=True)
    environments._publish(tmp_path / "later", made)
    assert (made / "mark").exists()


def test_a_program_sees_nothing_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    printed = environments.run(
        [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"],
        tmp_path,
        env={"MORE": "1"},
    )
    seen = json.loads(printed)
    assert "OPENAI_API_KEY" not in seen
    assert seen["HOME"] == str(tmp_path)
    assert seen["MORE"] == "1"
    assert seen["DO_NOT_TRACK"] == "1"


def test_a_program_that_fails_or_hangs_says_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ended with 3:\nbad luck"):
        environments.run([sys.executable, "-c", "print('bad luck'); exit(3)"], tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        environments.run([sys.executable, "-c", "while True: pass"], tmp_path, timeout_s=1)


def test_the_report_has_what_was_seen_what_failed_and_who_else_was_asked(tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    script.write_text(CHECKS)
    environments.run([sys.executable, script, json.dumps(asdict(TASK))], tmp_path)
    report = json.loads((tmp_path / "report.json").read_bytes())
    checks = report["checks"]
    assert checks["name"] == {"model": "m"}
    assert checks["later"] == 1
    assert checks["local"] is None
    assert "192.0.2.1" in checks["connects"]["failed"]
    assert report["outside"] == ["192.0.2.1", "telemetry.invalid"]


@pytest.mark.clients
def test_the_report_of_node_has_the_same(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("report.mjs"), tmp_path)
    script = tmp_path / "check.mjs"
    script.write_text(MODULE)
    node = environments.environment("openai_node") / "bin/node"
    environments.run([node, script, json.dumps(asdict(TASK))], tmp_path)
    report = json.loads((tmp_path / "report.json").read_bytes())
    checks = report["checks"]
    assert checks["name"] == {"model": "m"}
    assert "192.0.2.1" in checks["connects"]["failed"]
    assert "ECONNREFUSED" in checks["local"]["failed"]
    assert report["outside"] == ["192.0.2.1", "telemetry.invalid"]
