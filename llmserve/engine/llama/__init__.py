"""llama_cpp's low-level binding behind `runtime.Runtime`: the only modules that import llama_cpp.

Return codes, null pointers and log lines of llama.cpp become our errors here. Arguments are checked
before each call, because a failed GGML_ASSERT ends the process.
"""

from llmserve.engine.llama.runtime import LlamaRuntime as LlamaRuntime
from llmserve.engine.runtime import LlamaParams as LlamaParams
