"""HTTP: decode bytes -> `core.Request`, `core.Event` -> bytes.

One folder per dialect, none of which knows another; `http/` has what is true for every route.
Nothing here knows how a model computes: it asks the gateway.
"""
