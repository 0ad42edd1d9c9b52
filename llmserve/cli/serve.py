"""`llmserve serve`."""

import logging
import os
from pathlib import Path
from typing import Literal

import click
import msgspec

from llmserve.auth.key_file import VARIABLE, find_sources
from llmserve.auth.keyring import Keyring
from llmserve.cli.options import cache_dir, config_option, load
from llmserve.config.schema import Config
from llmserve.hub.locate import check_files

log = logging.getLogger(__name__)


@click.command()
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
@click.option("--log-prompts", is_flag=True, help="Log prompts and answers; off by default.")
@click.option(
    "--insecure-no-auth",
    is_flag=True,
    help="Listen to other machines without an API key: anyone who can reach this address can"
    " use it.",
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
    """The API keys of this server. Raises `ConfigError`."""
    sources = find_sources(config.server, os.environ)
    os.environ.pop(config.server.api_keys_env or VARIABLE, None)  # no child process needs it
    return Keyring(sources, sources.read(config.names))


def _warn_of_missing_keys(config: Config) -> None:
    """Of providers. No refusal: the models that run here do not need them."""
    for spec in config.models:
        variable = spec.remote.api_key_env if spec.remote else None
        if variable and not os.environ.get(variable):
            log.warning("model %s: the environment variable %s is not set", spec.name, variable)
