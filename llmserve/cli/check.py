"""`llmserve check`: what is wrong with a remote provider."""

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import click

from llmserve.cli.options import config_option, load
from llmserve.config.provider import is_private
from llmserve.config.schema import Config, ModelSpec
from llmserve.errors import ConfigError


@click.command()
@click.argument("name")
@config_option
def check(name: str, config_path: Path | None) -> None:
    """Test the provider of model NAME: name, connection, TLS, key, model, and a few words.

    The exit status is 1 if an address of it does not answer.

    \b
    Examples:
      llmserve check big
    """
    if not asyncio.run(_check(_remote(load(config_path), name))):
        raise SystemExit(1)


def _remote(config: Config, name: str) -> ModelSpec:
    spec = config.names.get(name)
    if spec is None:
        raise ConfigError(f"no model {name!r} in {config.path}; it has {', '.join(config.names)}")
    if spec.remote is None:
        raise ConfigError(
            f"model {name!r} runs here ({spec.source}); `llmserve models` says whether it is there"
        )
    return spec


async def _check(spec: ModelSpec) -> bool:
    # Here, not above: `llmserve --help` need not import a client.
    from llmserve.remote.probe import probe
    from llmserve.remote.remotes import Remotes
    from llmserve.telemetry.metrics import Metrics

    assert spec.remote
    is_ok = True
    remotes = Remotes(os.environ, Metrics())
    try:
        for url in spec.remote.urls:
            click.echo(url)
            async for step in probe(spec, url, remotes, is_proxied=_is_proxied(url)):
                click.echo(f"  {step.name:<10}  {step.told}")
                is_ok = is_ok and step.is_ok
    finally:
        await remotes.close()
    return is_ok


def _is_proxied(url: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme in getproxies() and not is_private(host) and not proxy_bypass(host)
