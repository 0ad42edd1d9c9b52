"""Threads and tasks that ask at the same time are answered together, in one batch."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from llmserve import LLM

QUESTIONS = [f"What is {n} plus {n}?" for n in range(8)]


async def ask_all(llm: LLM) -> list[str]:
    answers = await asyncio.gather(*(llm.agenerate(q, max_tokens=12) for q in QUESTIONS))
    return [answer.text for answer in answers]


with LLM(context_length=1024, max_concurrency=8) as llm, ThreadPoolExecutor(8) as threads:
    for answer in threads.map(lambda question: llm.generate(question, max_tokens=12), QUESTIONS):
        print(f"{answer.timings.tokens_per_s:5.1f} tokens/s  {answer}")
    print(asyncio.run(ask_all(llm)))
