"""The model's own chat template, in jinja's immutable sandbox, and its mirror: calls and thoughts.

Text in, text out; knows no tokens and no engine.
"""
