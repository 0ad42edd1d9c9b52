"""Calls and thoughts in the text of an answer: one parser for all formats, and their grammars."""
