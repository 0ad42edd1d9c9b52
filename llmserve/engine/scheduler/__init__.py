"""Which sequences enter, and what a step computes: decisions. No tensors, no llama.cpp, no text."""
