"""llama-server, as xllamacpp brings it: `python -m tests.remote.llama_server MODEL` until EOF.

In a process of its own, because its llama.cpp is not the one of the tests.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CONTEXT_LENGTH = 2048
NUM_SLOTS = 2


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = CONTEXT_LENGTH * NUM_SLOTS
    params.n_parallel = NUM_SLOTS
    params.port = 0
    params.verbosity = 0
    params.warmup = False
    params.cache_prompt = False  # whoever asks second would get other kernels' rounding
    # More would spin at barriers while the tests compute too.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """Its address, with /v1."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        address = ""
        while not address.startswith("http"):  # llama.cpp may say things first
            address = process.stdout.readline()
            assert address, f"llama-server ended: {process.wait()}"
        yield address.strip() + "/v1"
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
