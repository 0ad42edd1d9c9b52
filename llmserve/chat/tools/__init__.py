"""Calls and thoughts in the text of an answer: their formats, and one parser for all of them."""
