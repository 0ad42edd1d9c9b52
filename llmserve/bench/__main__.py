"""`scripts/bench`."""

from pathlib import Path

import click

from llmserve.bench import constrained as constrained_bench
from llmserve.bench import dialects as dialects_bench
from llmserve.bench import pool as pool_bench
from llmserve.bench import throughput
from llmserve.bench.figures import render
from llmserve.bench.targets import OpenAIPeer

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
rounds_option = click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100))
config_option = click.option(
    "--config", type=click.Path(path_type=Path, exists=True), default="models.toml"
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@rounds_option
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 4096))
@click.option("--peer", metavar="URL", help="Any server with /v1/completions, on the same prompts.")
@click.option("--peer-model", help="The model's name there, where it wants one.")
@json_option
@click.pass_context
def main(
    ctx: click.Context,
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
      scripts/bench pool                             loading, unloading, swapping models
      scripts/bench constrained                      answers under a JSON schema
      scripts/bench dialects                         what OpenAI's dialect costs
    """
    if ctx.invoked_subcommand:
        return
    figures = throughput.run(
        config,
        num_rounds=rounds,
        max_tokens=max_tokens,
        peer=OpenAIPeer(peer, peer_model) if peer else None,
    )
    click.echo(render(figures, as_json=as_json))


@main.command()
@config_option
@rounds_option
@json_option
def pool(config: Path, rounds: int, as_json: bool) -> None:
    """Time to first token of a warm, a cold and a swapped model; what the pool adds to a load."""
    click.echo(render(pool_bench.run(config, num_rounds=rounds), as_json=as_json))


@main.command()
@config_option
@rounds_option
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 4096))
@json_option
def constrained(config: Path, rounds: int, max_tokens: int, as_json: bool) -> None:
    """What a JSON schema costs: throughput under one, and compiling it."""
    figures = constrained_bench.run(config, num_rounds=rounds, max_tokens=max_tokens)
    click.echo(render(figures, as_json=as_json))


@main.command()
@config_option
@rounds_option
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 1024))
@json_option
def dialects(config: Path, rounds: int, max_tokens: int, as_json: bool) -> None:
    """The same conversations, streamed by POST /inference and by POST /v1/chat/completions."""
    figures = dialects_bench.run(config, num_rounds=rounds, max_tokens=max_tokens)
    click.echo(render(figures, as_json=as_json))


if __name__ == "__main__":
    main()
