"""`llmserve models`: what models.toml offers, and what is on disk."""

from pathlib import Path

import click

from llmserve.cli import output
from llmserve.cli.options import config_option, load
from llmserve.config.schema import ModelSpec
from llmserve.config.units import human
from llmserve.errors import ModelFileError
from llmserve.hub.locate import locate_all


@click.command()
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


def _size_on_disk(spec: ModelSpec) -> str:
    if spec.remote:
        return "-"
    try:
        return human(sum(file.stat().st_size for file in locate_all(spec)))
    except ModelFileError:
        return "missing"
