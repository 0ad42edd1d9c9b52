"""Files that somebody downloaded or wrote: the only way out is an error that says what is wrong."""

import io
import tempfile
from pathlib import Path

from llmserve.config.load import load_config
from llmserve.errors import ConfigError, ModelFileError
from llmserve.gguf.header import Header, ModelFiles
from llmserve.gguf.reader import read_contents
from llmserve.gguf.validate import check_servable
from llmserve.pool.memory.estimate import ContextOptions, estimate
from tests.fuzz.targets.common import check_words

NUM_CELLS = 512
OPTIONS = ContextOptions(max_sequences=16, max_outputs=16)


class _Watched(io.BytesIO):
    """Counts what is read: no lie may make the reader read a file over and over."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.num_read += len(data)
        return data


def check_gguf(data: bytes) -> None:
    """Header, what is asked of a model, and its memory."""
    file = _Watched(data)
    try:
        contents = read_contents(file, "x.gguf", len(data))
        header = Header(
            path="x.gguf",
            version=contents.version,
            metadata=contents.metadata,
            tensors=contents.tensors,
            data_offset=contents.data_offset,
            file_size=len(data),
        )
        assert sum(tensor.size_bytes for tensor in header.tensors) <= len(data)
        for name in ("name", "quantization", "context_length", "has_chat_template", "split_no"):
            getattr(header, name)
        model = ModelFiles((header,))
        check_servable(model)
        needed = estimate(model, num_cells=NUM_CELLS, options=OPTIONS)
        assert needed.weights_bytes >= 0
        assert needed.total_bytes < 1 << 80, "a number for people"
    except ModelFileError as error:
        check_words(error.message, max_len=2000, one_line=True)
    assert file.num_read <= 4 * len(data) + 100_000


def check_config(data: bytes) -> None:
    """models.toml."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            config = load_config(Path(file.name))
        except ConfigError as error:
            check_words(error.message, max_len=5000 + 2 * len(data))
        else:
            assert config.models
            for spec in config.models:
                assert config.chain(spec)[0] == spec
                assert spec.source
