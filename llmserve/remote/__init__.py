"""One call of a provider: a request -> events, with retries, limits and circuit breakers.

A protocol is pure; `client` does the I/O. Knows no pool and no engine.
"""
