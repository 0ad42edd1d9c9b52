"""What a GGUF's header says, read in Python with bounds, and whether llama.cpp may see it.

Foreign bytes: nothing here trusts a length. Loads no weights.
"""
