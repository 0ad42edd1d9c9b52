"""Starts the process of a model. It ends with the thread that does so."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

# Proxies' addresses and OpenTelemetry's headers can have passwords in them.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL|PROXY|^OTEL_", re.IGNORECASE)


class Spawned(NamedTuple):
    """A child that has been started, which need not be on an event loop."""

    process: "subprocess.Popen[bytes]"
    socket: socket.socket

    def discard(self) -> None:
        """End it, where nobody wants it any more."""
        self.socket.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def spawn(name: str, library: str) -> Spawned:
    """`name` is that of the model, for who looks at the list of processes."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    # -P: what lies in the working directory is nothing to import.
    command = [sys.executable, "-P", "-m", "llmserve.process.child", str(fd), library, name]
    try:
        with theirs, _blocked(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(fd,),
                env=_environment() | {"PYTHONPATH": path},
            )
    except BaseException:
        ours.close()
        raise
    return Spawned(process, ours)


def _environment() -> dict[str, str]:
    """Ours, without secrets: what reads the files of others needs none."""
    return {k: v for k, v in os.environ.items() if not _SECRET.search(k)}


@contextlib.contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """A child inherits it: the signals wait there, until it says that it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
