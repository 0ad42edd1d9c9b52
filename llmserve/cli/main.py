"""The group of commands."""

import click

from llmserve import __version__
from llmserve.cli.check import check
from llmserve.cli.keys import keys
from llmserve.cli.models import models
from llmserve.cli.pull import pull
from llmserve.cli.run import run
from llmserve.cli.serve import serve
from llmserve.errors import LlmserveError


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


for command in (serve, models, run, pull, check, keys):
    cli.add_command(command)
