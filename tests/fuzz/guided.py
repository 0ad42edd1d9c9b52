"""Coverage-guided fuzzing: python -m tests.fuzz.guided MODULE NAME [flags of libFuzzer] CORPUS

Never returns: atheris ends the process, with a code and a file with the input if a check fails.
"""

import sys

import atheris

from tests.fuzz.targets import Target


def main() -> None:
    _, module, name, *flags = sys.argv
    with atheris.instrument_imports(include=["llmserve"]):
        check = Target(name, module).check
    atheris.Setup([name, *flags], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
