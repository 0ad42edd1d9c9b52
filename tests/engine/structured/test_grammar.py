"""What may be compiled, and in whose words, is in test_constraint.py."""

from llmserve.core import Constraint
from llmserve.engine.structured.grammar import field_of


def test_a_field_has_its_name_in_the_native_dialect_unless_told() -> None:
    assert field_of(Constraint("gbnf", "x")) == "response_format.grammar"
    assert field_of(Constraint("gbnf", "x", "grammar")) == "grammar"
