"""A small part of JSON Schema: a strategy that writes it, and a validator that reads it."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = st.sampled_from(["a", "b", "name", "x y", "é", '"', "\\"])
_LEAVES: st.SearchStrategy[Schema] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-50, 50).flatmap(
        lambda low: st.integers(low, low + 200).map(
            lambda high: {"type": "integer", "minimum": low, "maximum": high}
        )
    ),
    st.integers(0, 3).map(lambda size: {"type": "string", "minLength": size, "maxLength": 3}),
    st.lists(
        st.one_of(st.booleans(), st.integers(-9, 9), st.text(max_size=5), st.none()),
        min_size=1,
        max_size=4,
    ).map(lambda values: {"enum": values}),
)


def _nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        st.dictionaries(_NAMES, inner, max_size=3).flatmap(_objects_with),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": 2}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    )


def _objects_with(properties: dict[str, Schema]) -> st.SearchStrategy[Schema]:
    names = (
        st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([])
    )
    return names.map(
        lambda required: {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    )


schemas = st.recursive(_LEAVES, _nested, max_leaves=6)


def is_valid(value: Any, schema: Schema) -> bool:
    """Whether decoded JSON matches a schema of this strategy."""
    if "anyOf" in schema:
        return any(is_valid(value, option) for option in schema["anyOf"])
    if "enum" in schema:
        return any(value == option and type(value) is type(option) for option in schema["enum"])
    match schema["type"]:
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            return is_integer and schema["minimum"] <= value <= schema["maximum"]
        case "string":
            return (
                isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
            )
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(is_valid(item, schema["items"]) for item in value)
            )
        case _:
            properties = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(properties)
                and all(is_valid(item, properties[name]) for name, item in value.items())
            )
