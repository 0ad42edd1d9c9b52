"""The command line: the only reader of argv and of the environment.

A module per group of commands; `main.py` puts them together.
"""

from llmserve.cli.main import cli

__all__ = ["cli"]
