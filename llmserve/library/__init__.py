"""What `llmserve.llm` is made of: its config, its parameters, its results, its event loop."""
