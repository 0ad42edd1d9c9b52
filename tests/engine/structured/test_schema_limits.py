"""The measures of what may be in a schema; what is refused by them is in test_constraint.py."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.structured.schema_limits import check_schema, reference_depth, text_depth
from tests.engine.structured.test_compiler import LINK, chain


@given(st.recursive(st.none() | st.text(max_size=4), lambda v: st.lists(v) | st.dictionaries(
    st.text(max_size=3), v), max_leaves=20))  # fmt: skip
def test_text_depth_is_the_depth(value: Any) -> None:
    def depth(node: Any) -> int:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        is_nested = isinstance(node, dict | list)
        return is_nested + max(map(depth, inner), default=0)

    assert text_depth(json.dumps(value)) == depth(value)


def test_reference_depth() -> None:
    def linked(length: int) -> dict[str, Any]:
        schema: dict[str, Any] = json.loads(chain(length, LINK))
        return schema

    assert reference_depth({"a": {"b": []}}) == 3
    assert reference_depth({"$ref": "#/$defs/a", "$defs": {"a": {"items": {}}}}) == 4 + 2
    assert reference_depth({"$ref": "#unknown"}) == 2  # counted like the whole
    assert reference_depth(linked(20)) - reference_depth(linked(10)) == 10 * 2
    check_schema(json.dumps(linked(400)), "schema")
