"""`llmserve run`: an answer in the terminal, without a server."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from llmserve.cli.options import config_option
from llmserve.core import DEFAULT_TEMPERATURE, Delta, Mode, ReasoningDelta

if TYPE_CHECKING:
    from llmserve.library.streams import Stream


@click.command()
@click.argument("name")
@click.argument("prompt", required=False)
@config_option
@click.option("--mode", type=click.Choice([Mode.COMPLETION.value, Mode.INSTRUCT.value]))
@click.option("--system", help="System message, with mode instruct.")
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=DEFAULT_TEMPERATURE, show_default=True
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="Default: until the model stops.")
@click.option("--seed", type=click.IntRange(min=0), help="Makes the answer repeatable.")
def run(
    name: str,
    prompt: str | None,
    config_path: Path | None,
    mode: Literal["completion", "instruct"] | None,
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
    from llmserve.llm import LLM  # here, not above: `llmserve --help` need not import the engine

    with LLM(name, config_file=config_path) as llm:
        parts = llm.stream(
            _text(sys.stdin.buffer.read() if prompt is None else prompt, "the prompt"),
            mode=mode,
            system=None if system is None else _text(system, "the system message"),
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
        )
        _print(parts)


def _print(parts: "Stream") -> None:
    is_thinking = False
    for part in parts:
        if isinstance(part, ReasoningDelta):  # to see, but no part of the answer
            click.secho(part.text, nl=False, err=True, dim=True)
            is_thinking = True
        elif isinstance(part, Delta):
            click.echo("\n\n" if is_thinking else "", nl=False, err=True)
            is_thinking = False
            click.echo(part.text, nl=False)
    click.echo()


def _text(given: str | bytes, what: str) -> str:
    """`given`, which must be UTF-8: Python smuggles other bytes of argv in as surrogates."""
    try:
        data = given if isinstance(given, bytes) else os.fsencode(given)
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{what} is not UTF-8: {error.reason}") from error
