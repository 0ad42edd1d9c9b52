"""`python -m llmserve`, and the `llmserve` command."""

from llmserve.cli import cli


def main() -> None:
    cli(prog_name="llmserve")


if __name__ == "__main__":
    main()
