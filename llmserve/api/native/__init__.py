"""The native dialect: POST /inference. Strict: what it does not know it refuses by name."""

from llmserve.api.endpoint import Dialect
from llmserve.api.native.inference import inference

NATIVE = Dialect((inference,))
