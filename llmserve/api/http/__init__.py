"""Bytes, limits and access: what every request meets before and behind its route.

Knows no dialect and no route.
"""
