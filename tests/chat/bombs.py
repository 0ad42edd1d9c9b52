"""Templates that would take for ever, or all memory, or the process, if nobody counted.

Each is valid jinja that the sandbox lets pass.
"""

_TWICE = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
)


def twice(start: str, step: str, use: str) -> str:
    """`step` makes `ns.x` larger sixty times."""
    return _TWICE.replace("START", start).replace("STEP", step) + use


def often(body: str, times: int = 100_000) -> str:
    return f"{{% set big = 'a' * 100000 %}}{{% for i in range({times}) %}}{body}{{% endfor %}}"


def macro(body: str, call: str = "{{ m(60) }}") -> str:
    return f"{{% macro m(n) %}}{body}{{% endmacro %}}{call}"


_DEEP = (
    "{% set ns = namespace(x=START) %}"
    "{% for i in range(9999) %}{% set ns.x = STEP %}{% endfor %}{{ USE }}"
)


def deep(start: str, step: str, use: str) -> str:
    return _DEEP.replace("START", start).replace("STEP", step).replace("USE", use)


BOMBS = {
    # loops
    "nested loops": often("{% for j in range(100000) %}{% endfor %}"),
    "nested loops with a condition": often("{% for j in range(100000) if false %}{% endfor %}"),
    "nested loops that break": often("{% for j in range(100000) %}{% break %}{% endfor %}") * 100,
    "a long body": often("{% set x = i %}" * 1500),
    "output": often("x" * 1000),
    "output of a value": often("{{ big }}"),
    "output of a macro": macro("x" * 1000, often("{% set y = m(i) %}")),
    "a recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a recursive loop over a range": (
        "{% for i in range(100000) recursive %}{% if loop.depth0 < 3 %}{{ loop(range(100000)) }}"
        "{% endif %}{% endfor %}"
    ),
    "a macro that calls itself twice": macro("{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"),
    "a macro without end": macro("{{ m(n) }}"),
    "a caller": macro("{% if n %}{{ caller() }}{{ caller() }}{% endif %}{{ n }}", (
        "{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% call m(9) %}x{% endcall %}{% endfor %}{% endfor %}"
    )),
    "a block that has itself twice": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "generators in generators": often("{{ range(100000)" + " | select" * 50 + " | list }}"),
    "generators that are unpacked": often("{{ [].index(*range(100000)) }}"),
    "generators to look in": often("{{ 'x' in range(100000) | map('string') }}"),
    "long paths of attributes": often(
        "{{ range(100000) | map(attribute='" + ".".join(["a"] * 1000) + "') | list | length }}"
    ),
    # texts
    "doubling with ~": twice("'ab'", "ns.x ~ ns.x", "{{ ns.x }}"),
    "doubling with +": twice("'ab'", "ns.x + ns.x", "{{ ns.x }}"),
    "doubling a list": twice("['ab']", "ns.x + ns.x", "{{ ns.x }}"),
    "doubling with join": twice("'ab'", "[ns.x, ns.x] | join(ns.x)", "{{ ns.x }}"),
    "doubling with set": twice("'ab'", "ns.x", "") + (
        "{% set x0 %}ab{% endset %}"
        + "".join(
            f"{{% set x{i + 1} %}}{{{{ x{i} }}}}{{{{ x{i} }}}}{{% endset %}}" for i in range(60)
        )
        + "{{ x60 }}"
    ),
    "doubling with format": twice("'ab'", "'{0}{0}'.format(ns.x)", "{{ ns.x }}"),
    "doubling with %": twice("'ab'", "'%s%s' % (ns.x, ns.x)", "{{ ns.x }}"),
    "doubling with escape": twice("'&'", "(ns.x ~ ns.x) | escape", "{{ ns.x }}"),
    "doubling with replace": twice("'ab'", "ns.x | replace('a', 'aa')", "{{ ns.x }}"),
    "times": "{{ 'a' * 10 ** 10 }}",
    "times from the left": "{{ 10 ** 10 * 'a' }}",
    "times a list": "{{ ([1] * 10 ** 10) | length }}",
    "times a tuple": "{{ (1, 2) * 10 ** 10 }}",
    "replace nothing": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "replace as a method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace by name": "{{ ('a' * 100000) | replace(new='b' * 100000, old='a') }}",
    "join": "{{ range(100000) | join('b' * 100000) }}",
    "join as a method": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join of a text": "{{ ('a' * 1000000) | join('b' * 1000) }}",
    "center": "{{ 'a' | center(10 ** 9) }}",
    "center as a method": "{{ 'a'.center(10 ** 9) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "zfill": "{{ '1'.zfill(10 ** 9) }}",
    "center in map": "{{ ['a'] | map('center', 10 ** 9) | first }}",
    "expandtabs": "{{ '\\t'.expandtabs(10 ** 9) }}",
    "indent": "{{ ('a\\n' * 1000) | indent(10 ** 9) }}",
    "indent with a text": "{{ ('a\\n' * 100000) | indent('b' * 100000) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format with the precision": "{{ '%.1000000000f' % 1 }}",
    "format with a star": "{{ '%*d' % (10 ** 9, 1) }}",
    "format as a filter": "{{ '%1000000000d' | format(1) }}",
    "format as a method": "{{ '{:1000000000}'.format(1) }}",
    "format in a format": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "many formats": "{{ ('%s' * 10000) | format(*(['a' * 10000] * 10000)) }}",
    "tojson with a wide indent": "{{ [1] | tojson(indent=10 ** 9) }}",
    "tojson with a long separator": (
        "{{ range(100000) | list | tojson(separators=('b' * 100000, '')) }}"
    ),
    "wordwrap": "{{ ('a ' * 10000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "urlize": "{{ ('a.com ' * 10000) | urlize(rel='b' * 100000) }}",
    "striptags": "{{ ('<!---->' * 100000) | striptags }}",
    "truncate": often("{{ big | truncate(10, end=big) }}"),
    "upper": often("{% set x = big | upper %}"),
    "upper as a method": often("{% set x = big.upper() %}"),
    "split": often("{% set x = big.split('a') %}"),
    "a slice": often("{% set x = big[::-1] %}"),
    "a search": often("{% set x = 'b' in big %}"),
    "a comparison": often("{% set x = big ~ 'a' == big ~ 'b' %}"),
    "a method in a variable": "{% set f = 'a'.center %}{{ f(10 ** 9) }}",
    "a method by attr": "{{ ('a' | attr('center'))(10 ** 9) }}",
    "a method by map": "{{ (['a'] | map(attribute='center') | first)(10 ** 9) }}",
    "a date": "{{ strftime_now('%999999999Y' * 100000) }}",
    # numbers
    "a tower of powers": "{{ 10 ** (10 ** 10) }}",
    "a negative power": "{{ 10 ** -(10 ** 10) * 10 ** 10 ** 10 }}",
    "squares": twice("9", "ns.x * ns.x", "{{ ns.x > 1 }}"),
    "to_bytes": "{{ (1).to_bytes(10 ** 9, 'big') | length }}",
    "round": "{{ 1.5 | round(10 ** 9, 'floor') }}",
    "from_bytes": "{{ (1).from_bytes([1] * 10000000, 'big') > 1 }}",
    # lists
    "batch": "{{ [1] | batch(10 ** 9, 0) | list | length }}",
    "slice into many": "{{ [1] | slice(10 ** 9) | list | length }}",
    "sum of lists": "{{ ([[1]] * 100000) | sum(start=[]) | length }}",
    "a large range": "{{ range(10 ** 9) | list | length }}",
    "ranges in lists": often("{% set x = range(100000) | list %}"),
    "hoarding": (
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% set ns.x = [ns.x, {'a': 'b' * 100}] %}{% endfor %}{% endfor %}"
    ),
    # values in themselves, which C code walks without a look at anything
    "a shared list as text": twice("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "a shared list in a text": twice("[1]", "[ns.x, ns.x]", "{% set x = ns.x ~ '' %}"),
    "a shared list as string": twice("[1]", "[ns.x, ns.x]", "{% set x = ns.x | string %}"),
    "a shared list as JSON": twice("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"),
    "a shared dict as JSON": twice("1", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
    "a shared list printed": twice("[1]", "[ns.x, ns.x]", "{{ ns.x | pprint }}"),
    "a shared list in a format": twice("[1]", "[ns.x, ns.x]", "{{ '%s' % (ns.x,) }}"),
    "shared lists compared": (
        twice("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
        + twice("[1]", "[ns.x, ns.x]", "{{ ns.x == a }}")
    ),
    "shared lists looked for": (
        twice("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
        + twice("[1]", "[ns.x, ns.x]", "{{ ns.x in [a] | map('list') }}")
    ),
    "shared lists looked for by a test": (
        twice("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
        + twice("[1]", "[ns.x, ns.x]", "{{ [ns.x] | select('in', [a]) | list | length }}")
    ),
    "shared lists counted": (
        twice("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
        + twice("[1]", "[ns.x, ns.x]", "{{ [a].count(ns.x) }}")
    ),
    "shared lists sorted": (
        twice("[1]", "[ns.x, ns.x]", "{% set a = ns.x %}")
        + twice("[1]", "[ns.x, ns.x]", "{{ [a, ns.x] | map('list') | sort | length }}")
    ),
    "a shared tuple as a key": twice("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} | length }}"),
    "a shared tuple looked up": twice("(1,)", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    "a shared tuple got": twice("(1,)", "(ns.x, ns.x)", "{{ {}.get(ns.x) }}"),
    "shared tuples made unique": twice(
        "(1,)", "(ns.x, ns.x)", "{{ [ns.x] | unique | list | length }}"
    ),
    "shared arguments": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}{{ varargs }}"
        "{% endif %}{% endmacro %}{{ m(40, 1) }}"
    ),
    "a namespace in itself": (
        "{% set a = namespace() %}{% for i in range(40) %}{% set b = namespace(x=a, y=a) %}"
        "{% set a.x = [b, b] %}{% endfor %}{{ [a] * 100000 * 100000 }}"
    ),
    "a deep list as text": deep("[]", "[ns.x]", "ns.x"),
    "a deep list as JSON": deep("[]", "[ns.x]", "ns.x | tojson"),
    "deep lists compared": deep("[]", "[ns.x]", "ns.x == [ns.x]"),
    # A hash of these overflows the stack of the process.
    "a deep tuple as a key": deep("()", "(ns.x,)", "{ns.x: 1}"),
    "a deep tuple looked up": deep("()", "(ns.x,)", "{}[ns.x]"),
    "a deep tuple made unique": deep("()", "(ns.x,)", "[ns.x] | unique | list"),
    "a deep tuple in a dict": deep("()", "(ns.x,)", "dict([(ns.x, 1)])"),
    "a deep tuple grouped": deep("()", "(ns.x,)", "[{'a': ns.x}] | groupby('a')"),
    "a deep tuple among keys": deep("()", "(ns.x,)", "{}.keys() - [ns.x]"),
}  # fmt: skip
