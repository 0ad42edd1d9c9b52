"""`llmserve pull`: models from the hub, before the server needs them."""

from collections.abc import Sequence
from pathlib import Path

import click

from llmserve.cli import output
from llmserve.cli.options import config_option, load
from llmserve.cli.output import for_stream
from llmserve.config.edit import append_model, check_free
from llmserve.config.hub_ref import BadRefError, HubRef, parse_ref
from llmserve.config.schema import Config
from llmserve.config.units import human
from llmserve.errors import ConfigError, ModelFileError
from llmserve.hub import cache
from llmserve.hub.locate import Fetched, fetch, locate
from llmserve.hub.quants import Weights, choose, group
from llmserve.machine.memory import total_bytes

USABLE = 0.8  # of the machine's memory
OVERHEAD = 1.2  # context and work buffers on top of the weights


@click.command()
@click.argument("ref")
@click.option("--file", help="The .gguf file to take, instead of a quantization.")
@click.option("--revision", help="Branch, tag or commit. Default: the newest.")
@click.option("--sha256", help="Expected SHA-256 of the file.")
@click.option("--list", "only_list", is_flag=True, help="Show what there is; download nothing.")
@click.option("--add", "add_name", metavar="NAME", help="Append an entry NAME to models.toml.")
@config_option
def pull(
    ref: str,
    file: str | None,
    revision: str | None,
    sha256: str | None,
    only_list: bool,
    add_name: str | None,
    config_path: Path | None,
) -> None:
    """Download a model into the hub's cache, where the server finds it.

    REF is a name in models.toml, owner/repo, owner/repo:QUANT, or the address of either on
    huggingface.co. Without QUANT: Q4_K_M, else the smallest file of at least 4 bits. The same
    command again goes on where it was interrupted. HF_HOME, HF_TOKEN, HF_ENDPOINT and
    HF_HUB_OFFLINE are honoured.

    \b
    Examples:
      llmserve pull qwen                              a model of models.toml
      llmserve pull Qwen/Qwen3-4B-GGUF --list         its quantizations, and which fit
      llmserve pull Qwen/Qwen3-4B-GGUF:Q8_0 --add qwen
    """
    if only_list and add_name:
        raise click.UsageError("--list downloads nothing, so there is nothing to --add")
    config = load(config_path)
    wanted = _resolve(ref, config, {"file": file, "revision": revision, "sha256": sha256})
    if wanted is None:
        click.echo(f"nothing to download: {ref} is {locate(config.names[ref])}")
    elif only_list:
        _print_list(wanted)
    else:
        _download(wanted, config, add_name)


def _resolve(text: str, config: Config, options: dict[str, str | None]) -> HubRef | None:
    """What to fetch; None for a model of models.toml that does not come from the hub."""
    spec = config.names.get(text)
    if spec:
        if given := [f"--{key}" for key, value in options.items() if value is not None]:
            raise ConfigError(
                f"{', '.join(given)}: {text!r} is an entry of {config.path}; change it there"
            )
        return spec.hub
    try:
        return parse_ref(text, **options)
    except BadRefError as error:
        if error.key != "hf":
            raise ModelFileError(f"--{error.key}: {error.reason}") from error
        names = ", ".join(config.names)
        raise ModelFileError(
            f"{text!r} is not a model of {config.path} (it has {names}), and on the hub"
            f" {error.reason}"
        ) from error


def _download(ref: HubRef, config: Config, add_name: str | None) -> None:
    if add_name:
        check_free(config, add_name)  # before gigabytes are fetched
    try:
        fetched = fetch(ref, progress=for_stream())
    except KeyboardInterrupt:
        click.echo("\nstopped; the same command goes on from here", err=True)
        raise
    click.echo(fetched.path)
    if add_name:
        _add(config, add_name, ref, fetched)


def _add(config: Config, name: str, ref: HubRef, fetched: Fetched) -> None:
    if fetched.weights is None or fetched.commit is None:
        raise ModelFileError("nothing was added: offline, so what it is could not be looked up")
    weights = fetched.weights
    if not ref.file and not ref.quant:  # write down what was chosen, so that it stays that
        ref = HubRef(
            ref.repo,
            quant=weights.quant,
            file=None if weights.quant else weights.first.path,
            revision=ref.revision,
            sha256=ref.sha256,
        )
    comment = f"{weights.first.path.rpartition('/')[2]}, {human(weights.size_bytes)}"
    append_model(config, name, ref, comment=comment, commit=fetched.commit)
    click.echo(f"added [models.{name}] to {config.path}", err=True)


def _print_list(ref: HubRef) -> None:
    from llmserve.hub.client import Hub  # slow to import

    hub = Hub()
    listing = hub.list_files(ref)
    models = group(listing.files)
    chosen = _chosen(ref, models)
    click.echo(f"{ref.repo} at {ref.revision or 'main'} ({listing.commit[:12]})\n")
    rows = [("QUANT", "SIZE", "PARTS", "FITS", "ON DISK", "FILE")]
    for one in models:
        files = cache.find(HubRef(ref.repo, file=one.first.path, revision=ref.revision))
        rows.append(_row(one, one == chosen, bool(files)))
    for line in output.lines(rows):
        click.echo(line)
    click.echo(
        f"\n*: taken for {ref.text}. FITS: the file and {OVERHEAD - 1:.0%} for the context"
        f" in {USABLE:.0%} of this machine's {human(total_bytes())}."
    )


def _chosen(ref: HubRef, models: Sequence[Weights]) -> Weights | None:
    """What a download would take; None where it would ask for a clearer name."""
    if not models:
        raise ModelFileError(f"{ref.repo} has no .gguf model")
    try:
        return choose(ref, models)
    except ModelFileError:
        return None


def _row(one: Weights, is_chosen: bool, on_disk: bool) -> tuple[str, str, str, str, str, str]:
    return (
        f"{one.quant or '?'}{' *' if is_chosen else ''}",
        human(one.size_bytes),
        str(one.num_parts),
        "yes" if fits(one.size_bytes) else "no",
        "yes" if on_disk else "-",
        one.first.path,
    )


def fits(size_bytes: int) -> bool:
    """Whether weights of `size_bytes` leave room for a context."""
    return size_bytes * OVERHEAD <= total_bytes() * USABLE
