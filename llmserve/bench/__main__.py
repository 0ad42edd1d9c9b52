"""`scripts/bench`."""

import os
import platform
import subprocess
from pathlib import Path

import click
import msgspec

from llmserve.bench import throughput
from llmserve.bench.targets import OpenAIPeer
from llmserve.bench.throughput import Figure


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), default="models.toml")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100))
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 4096))
@click.option("--peer", metavar="URL", help="Any server with /v1/completions, on the same prompts.")
@click.option("--peer-model", help="The model's name there, where it wants one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    config: Path,
    rounds: int,
    max_tokens: int,
    peer: str | None,
    peer_model: str | None,
    as_json: bool,
) -> None:
    """Measure the server against a bare llama_decode loop, interleaved, on this machine.

    \b
    Examples:
      scripts/bench
      scripts/bench --rounds 5 --json
      scripts/bench --peer http://127.0.0.1:8080     a llama-server on the same model file
    """
    figures = throughput.run(
        config,
        num_rounds=rounds,
        max_tokens=max_tokens,
        peer=OpenAIPeer(peer, peer_model) if peer else None,
    )
    click.echo(_json(figures) if as_json else _table(figures))


def _json(figures: list[Figure]) -> str:
    result = {"machine": _machine(), "figures": figures}
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode()


def _table(figures: list[Figure]) -> str:
    lines = [_machine(), "", "| figure | measured | reach | |", "|---|---|---|---|"]
    lines += [
        f"| {f.name} | {f.value:.{2 if f.value < 10 else 0}f} {f.unit} | {f.reach} | {f.verdict} |"
        for f in figures
    ]
    return "\n".join(lines)


def _machine() -> str:
    """CPU, cores and commit: what a figure means nothing without."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"{cpu}, {os.cpu_count()} cores, commit {commit.stdout.strip() or 'unknown'}"


if __name__ == "__main__":
    main()
