"""Prompts, one and many, and a text that is shown while it is written."""

from llmserve import LLM

with LLM() as llm:  # the default model; or a name of models.toml, a path, owner/repo:QUANT
    print(llm.generate("Name three colours.", max_tokens=24))

    places = ["Paris", "Tokyo", "Cairo", "Lima"]
    answers = llm.generate([f"The city of {p} is known for" for p in places], max_tokens=16)
    for place, answer in zip(places, answers, strict=True):
        print(f"{place}: {answer} ({answer.generated_tokens} tokens, {answer.finish_reason})")

    for text in llm.stream("Tell me a story.", max_tokens=40, seed=7).texts():
        print(text, end="", flush=True)
    print()
