"""The group of commands, and those about serving."""

import asyncio
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Literal

import click
import msgspec

from llmserve import __version__
from llmserve.auth.key_file import VARIABLE, find_sources
from llmserve.auth.keyring import Keyring
from llmserve.cli import output
from llmserve.cli.check import check
from llmserve.cli.keys import keys
from llmserve.cli.options import cache_dir, config_option, load
from llmserve.cli.pull import pull
from llmserve.config.config import Config, ModelSpec
from llmserve.config.units import human
from llmserve.core import Delta, Mode, ReasoningDelta, Request, SamplingParams
from llmserve.errors import LlmserveError, ModelFileError
from llmserve.hub.locate import check_files, locate_all

log = logging.getLogger(__name__)


class _Commands(click.Group):
    """Our errors end a command with their message and status 1, not with a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LlmserveError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Serve language models on a CPU: POST /inference over quantized GGUF files.

    \b
    Examples:
      llmserve serve                              start on 127.0.0.1:8000
      llmserve serve --port 9000 --log-level debug
      llmserve models                             what models.toml offers, and what is on disk
      llmserve pull qwen                          download a model of models.toml
      llmserve run smollm2 "Say hello."           answer in the terminal, without a server
      llmserve check big                          test a remote provider
      llmserve keys new alice --add keys.toml     make an API key
    """


cli.add_command(pull)
cli.add_command(check)
cli.add_command(keys)


@cli.command()
@click.option("--host", help="Address to listen on. Default: models.toml, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: models.toml, else 8000.")
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="debug shows llama.cpp's own log too.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    show_default=True,
    help="auto: text on a terminal, JSON elsewhere.",
)
@click.option(
    "--log-prompts", is_flag=True, help="Log prompts and answers, which is never done else."
)
@click.option(
    "--insecure-no-auth",
    is_flag=True,
    help="Listen to other machines without an API key: whoever can reach it may use it.",
)
def serve(
    host: str | None,
    port: int | None,
    config_path: Path | None,
    log_level: str,
    log_format: Literal["auto", "json", "text"],
    log_prompts: bool,
    insecure_no_auth: bool,
) -> None:
    """Start the server; Ctrl-C ends it once running requests are done.

    \b
    Examples:
      llmserve serve
      llmserve serve --config my-models.toml
      LLMSERVE_API_KEYS=... llmserve serve --host 0.0.0.0 --port 9000
    """
    # Here, not above: `llmserve --help` need not import a web server.
    from llmserve.assembly import build_gateway
    from llmserve.telemetry.logs import set_up
    from llmserve.telemetry.otlp import start_export

    set_up(log_level, log_format)
    config = load(config_path)
    flags = {"host": host, "port": port, "log_prompts": log_prompts or None}
    given = {k: v for k, v in flags.items() if v is not None}
    check_files(config.models)  # a missing file is told now, not to the first request
    _warn_of_missing_keys(config)
    server = msgspec.structs.replace(config.server, **given)
    config = msgspec.structs.replace(config, server=server)
    keyring = _keyring(config)
    export = start_export(os.environ)
    try:
        gateway = build_gateway(
            config,
            os.environ,
            keyring=keyring,
            tracing=export.tracing if export else None,
            first=config.default if server.preload else None,
            cache_dir=cache_dir(os.environ),
        )
        from llmserve.api.server import serve as run_server  # takes a while, as that model does

        run_server(gateway, insecure_no_auth=insecure_no_auth)
    finally:
        if export:
            export.close()


def _keyring(config: Config) -> Keyring:
    """The API keys of who may ask. Raises `ConfigError`."""
    sources = find_sources(config.server, os.environ)
    os.environ.pop(config.server.api_keys_env or VARIABLE, None)  # no child process needs it
    return Keyring(sources, sources.read(config.names))


def _warn_of_missing_keys(config: Config) -> None:
    """Of providers. No refusal: the models that run here do not need them."""
    for spec in config.models:
        variable = spec.remote.api_key_env if spec.remote else None
        if variable and not os.environ.get(variable):
            log.warning("model %s: the environment variable %s is not set", spec.name, variable)


@cli.command()
@config_option
def models(config_path: Path | None) -> None:
    """List the models that models.toml offers, and whether they are on disk."""
    config = load(config_path)
    click.echo(f"{config.path}\n")
    rows = [("NAME", "ALIASES", "ON DISK", "SOURCE")]
    rows += [
        (spec.name, ", ".join(spec.aliases) or "-", _size_on_disk(spec), spec.source)
        for spec in config.models
    ]
    for line in output.lines(rows):
        click.echo(line)


@cli.command()
@click.argument("name")
@click.argument("prompt", required=False)
@config_option
@click.option("--mode", type=click.Choice([Mode.COMPLETION.value, Mode.INSTRUCT.value]))
@click.option("--system", help="System message, with mode instruct.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Default: until the model stops.")
@click.option("--seed", type=click.IntRange(min=0), help="Makes the answer repeatable.")
def run(
    name: str,
    prompt: str | None,
    config_path: Path | None,
    mode: str | None,
    system: str | None,
    temperature: float,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Answer PROMPT (or standard input) with model NAME, streaming to the terminal.

    \b
    Examples:
      llmserve run smollm2 "Name three colours."
      llmserve run smollm2 --mode completion --max-tokens 40 "Once upon a time"
      llmserve run smollm2 --temperature 0 < question.txt
    """
    logging.basicConfig(level=logging.CRITICAL)  # what goes wrong is raised, and told once
    if not 0 <= temperature <= 2:  # NaN is in every FloatRange
        raise click.BadParameter(f"{temperature} is not in the range 0<=x<=2.")
    config = load(config_path)
    request = Request(
        model=name,
        prompt=_text(sys.stdin.buffer.read() if prompt is None else prompt, "the prompt"),
        mode=Mode(mode) if mode else None,
        system=None if system is None else _text(system, "the system message"),
        sampling=SamplingParams(temperature=temperature),
        max_tokens=max_tokens,
        seed=seed,
    )
    asyncio.run(_print_answer(config, request))


async def _print_answer(config: Config, request: Request) -> None:
    from llmserve.assembly import build_gateway

    gateway = build_gateway(config, os.environ, first=config.names.get(request.model or ""))
    is_thinking = False
    try:
        async with contextlib.aclosing(gateway.generate(request)) as events:
            async for event in events:
                if isinstance(event, ReasoningDelta):  # to see, but no part of the answer
                    click.secho(event.text, nl=False, err=True, dim=True)
                    is_thinking = True
                elif isinstance(event, Delta):
                    click.echo("\n\n" if is_thinking else "", nl=False, err=True)
                    is_thinking = False
                    click.echo(event.text, nl=False)
        click.echo()
    finally:
        await gateway.close()


def _text(given: str | bytes, what: str) -> str:
    """`given`, which must be UTF-8: Python smuggles other bytes of argv in as surrogates."""
    try:
        data = given if isinstance(given, bytes) else os.fsencode(given)
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} is not UTF-8: {error.reason}") from error


def _size_on_disk(spec: ModelSpec) -> str:
    if spec.remote:
        return "-"
    try:
        return human(sum(file.stat().st_size for file in locate_all(spec)))
    except ModelFileError:
        return "missing"
