"""Loaded models: lease, load, evict, all within the memory budget.

Knows the header of a file and the engine's interface; never native code, never HTTP.
"""
