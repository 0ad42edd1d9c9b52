"""Tokens -> text that is safe to show, its calls and thoughts. No I/O: push, then flush."""
