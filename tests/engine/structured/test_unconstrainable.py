"""A vocabulary that llguidance cannot work with: the model serves, but nothing constrained."""

from pathlib import Path

import pytest

from llmserve.core import Constraint
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.structured.compiler import Compiler
from llmserve.errors import InvalidRequestError
from tests.fuzz.ggufs.dissected import strings_or_numbers, take_apart
from tests.gguf.raw_gguf import INT32
from tests.tiny_models import write_llama


def test_a_constraint_is_refused_by_its_name(tmp_path: Path) -> None:
    model = take_apart(write_llama(tmp_path / "good.gguf", vocab=320))
    nothing = strings_or_numbers(b"tokenizer.ggml.token_type", INT32, [0] * 320)
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.put(nothing).encode())
    runtime = LlamaRuntime(
        path, LlamaParams(context_length=256, max_sequences=16, max_outputs=16, num_threads=1)
    )
    try:
        compiler = Compiler(runtime.grammar_tokenizer)
        with pytest.raises(InvalidRequestError, match="vocabulary of this model") as caught:
            compiler.prepare(1, Constraint("regex", "a+"))
        assert caught.value.param == "response_format.regex"
    finally:
        runtime.close()
