"""`scripts/bench`."""

import signal
import sys
from pathlib import Path

import click

from tests.bench import connections as connections_bench
from tests.bench import constrained as constrained_bench
from tests.bench import dialects as dialects_bench
from tests.bench import embeddings as embeddings_bench
from tests.bench import faults as faults_bench
from tests.bench import isolation as isolation_bench
from tests.bench import pool as pool_bench
from tests.bench import prefix as prefix_bench
from tests.bench import remote as remote_bench
from tests.bench import scheduling as scheduling_bench
from tests.bench import speculation as speculation_bench
from tests.bench import sweep as sweep_bench
from tests.bench import throughput
from tests.bench.figures import Figure, render
from tests.bench.load import Target
from tests.bench.soak import drive as soak_drive
from tests.bench.soak import run as soak_run
from tests.bench.targets import OpenAIPeer, Server

_INTERRUPTED = 130  # as a shell has it
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
rounds_option = click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100))
peer_option = click.option(
    "--peer", metavar="URL", help="Any server with /v1/completions, on the same prompts."
)
peer_model_option = click.option("--peer-model", help="The model's name there, where it wants one.")
config_option = click.option(
    "--config", type=click.Path(path_type=Path, exists=True), default="models.toml"
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@rounds_option
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 4096))
@peer_option
@peer_model_option
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
      scripts/bench connections                      a request beside 2,500 idle and slow clients
      scripts/bench constrained                      answers under a JSON schema
      scripts/bench dialects                         what OpenAI's dialect costs
      scripts/bench remote                           what the gateway adds to a provider
      scripts/bench embeddings                       what a batch of texts is worth
      scripts/bench prefix --peer URL                prompts with a common beginning
      scripts/bench scheduling --peer URL            streams and newcomers beside long prompts
      scripts/bench speculation                      guesses where an answer repeats its prompt
      scripts/bench sweep --peer URL --plot out.svg  throughput and gaps against offered load
      scripts/bench isolation                        what a process for each model costs
      scripts/bench faults --rounds 20               a model's process dies or hangs under streams
      scripts/bench soak --minutes 10                mixed load with faults: what is lost or wrong
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
@json_option
def connections(config: Path, rounds: int, as_json: bool) -> None:
    """A normal request beside 2,000 idle and 500 slow connections, and what an idle one takes."""
    click.echo(render(connections_bench.run(config, num_rounds=rounds), as_json=as_json))


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


@main.command()
@config_option
@rounds_option
@peer_option
@peer_model_option
@json_option
def prefix(
    config: Path, rounds: int, peer: str | None, peer_model: str | None, as_json: bool
) -> None:
    """Prompts with a common beginning: at once, again, in conversations, after a restart."""
    other = Target("peer", peer, peer_model) if peer else None
    click.echo(render(prefix_bench.run(config, other, num_rounds=rounds), as_json=as_json))


@main.command()
@config_option
@rounds_option
@peer_option
@peer_model_option
@json_option
def scheduling(
    config: Path, rounds: int, peer: str | None, peer_model: str | None, as_json: bool
) -> None:
    """What running streams and short prompts feel while long prompts arrive."""
    other = Target("peer", peer, peer_model) if peer else None
    with Server(config) as server:
        ours = Target("llmserve", server.url)
        figures = scheduling_bench.run(ours, other, num_rounds=rounds)
    click.echo(render(figures, as_json=as_json))


@main.command()
@config_option
@rounds_option
@click.option("--max-tokens", default=160, show_default=True, type=click.IntRange(8, 1024))
@json_option
def speculation(config: Path, rounds: int, max_tokens: int, as_json: bool) -> None:
    """One stream with and without guessed tokens."""
    figures = speculation_bench.run(config, num_rounds=rounds, max_tokens=max_tokens)
    click.echo(render(figures, as_json=as_json))


@main.command()
@config_option
@click.option("--rate", "rates", multiple=True, type=float, help="Requests a second; repeatable.")
@click.option(
    "--window", default=30.0, show_default=True, help="Seconds of arrivals for each rate."
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="An image to write.")
@peer_option
@peer_model_option
@json_option
def sweep(
    config: Path,
    rates: tuple[float, ...],
    window: float,
    plot: Path | None,
    peer: str | None,
    peer_model: str | None,
    as_json: bool,
) -> None:
    """Throughput, gaps and time to first token at several offered loads."""
    plan = sweep_bench.Sweep(rates or sweep_bench.RATES, window)
    others = [Target("peer", peer, peer_model)] if peer else []
    with Server(config) as server:
        points = sweep_bench.run([Target("llmserve", server.url), *others], plan)
    if plot:
        sweep_bench.plot(points, plot)
    click.echo(render(sweep_bench.figures(points), as_json=as_json))


@main.command()
@config_option
@rounds_option
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(8, 1024))
@json_option
def isolation(config: Path, rounds: int, max_tokens: int, as_json: bool) -> None:
    """Throughput and memory of a model in a process of its own, against threads."""
    figures = isolation_bench.run(config, num_rounds=rounds, max_tokens=max_tokens)
    click.echo(render(figures, as_json=as_json))


@main.command()
@rounds_option
@json_option
def remote(rounds: int, as_json: bool) -> None:
    """Latency, CPU and requests a second over a provider that answers at once."""
    click.echo(render(remote_bench.run(num_rounds=rounds), as_json=as_json))


@main.command()
@config_option
@rounds_option
@json_option
def embeddings(config: Path, rounds: int, as_json: bool) -> None:
    """64 short texts in one call, against 64 calls."""
    click.echo(render(embeddings_bench.run(config, num_rounds=rounds), as_json=as_json))


@main.command()
@config_option
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.option("--stall", default=10.0, show_default=True, help="Seconds of `stall_timeout`.")
@json_option
def faults(config: Path, rounds: int, stall: float, as_json: bool) -> None:
    """A model's process is killed or stopped under 16 streams; exit code 1 if that hurts others."""
    figures, troubles = faults_bench.run(config, num_rounds=rounds, stall_s=stall)
    _conclude(figures, troubles, as_json=as_json)


@main.command()
@config_option
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.2, 24 * 60))
@click.option("--rate", default=1.5, show_default=True, help="Requests a second.")
@click.option("--seed", default=1, show_default=True, help="Of everything that is drawn.")
@click.option("--no-kills", is_flag=True, help="Leave the models' processes alone.")
@json_option
def soak(
    config: Path, minutes: float, rate: float, seed: int, no_kills: bool, as_json: bool
) -> None:
    """Mixed load, bad input, swaps and kills; exit code 1 if anything was lost, wrong or hung."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the server too
    plan = soak_drive.Plan(minutes, seed, rate, has_faults=not no_kills)
    result = soak_run.run(config, plan)
    _conclude(result.figures, result.troubles, as_json=as_json)
    sys.exit(0 if result.is_whole else _INTERRUPTED)


def _conclude(figures: list[Figure], troubles: list[str], *, as_json: bool) -> None:
    """Print all, and end with 1 if there was trouble or a figure is not what it must be."""
    click.echo(render(figures, as_json=as_json))
    for line in troubles:
        click.echo(line, err=True)
    if troubles or any(figure.verdict == "MISSED" for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
