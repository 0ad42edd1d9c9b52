"""jinja's immutable sandbox, with limits on what a template does.

jinja keeps a template from code that is not its business, but not from working for ever. Here all
that takes more than a moment is paid for at a `Meter` first: the syntax tree gets a payment into
each body that can repeat, and before each comparison, concatenation and output; operators, calls,
filters and tests are jinja's own hooks. Nothing is computed while a template is compiled.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from llmserve.chat.meter import ITEM, Meter, OverLimitsError

_METER: ContextVar[Meter] = ContextVar("meter")

MAX_NODES = 6_000  # of the syntax tree; the largest known have 2,000. Compiling can take the square

_STEP = 2  # characters for each node of the syntax tree, each time that its body runs
_CALL = 64  # for a call
_OWN_CODE = (Macro, BlockReference, LoopContext)  # which pays for itself

# Names that no template can write.
_PAY, _READ, _READ_ITEMS = "pay-body", "pay-read", "pay-items"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What of Python's own objects templates may call; jinja's sandbox lets them call much more.
_STR_METHODS = _names(
    "capitalize casefold center count endswith find format format_map index isalnum isalpha"
    " isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper"
    " join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust"
    " rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
)
_METHODS = {
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index"),
    float: _names("is_integer"),
}
_MAKE_ITEMS = _names("partition rpartition rsplit split splitlines")

# Filters by what they cost: nothing worth counting; the items but not what is in them; the square
# of the value. All others can write their arguments once for each character.
_FREE_FILTERS = _names("attr count d default first last length random")
_ITEM_FILTERS = _names("batch items list map reject rejectattr reverse select selectattr slice")
_SQUARE_FILTERS = _names("pprint striptags sum title urlize wordwrap xmlattr")
_READING_TESTS = _names(
    "== != < <= > >= eq ne lt le gt ge equalto greaterthan lessthan in lower upper"
)


class Sandbox(ImmutableSandboxedEnvironment):
    """What templates are written for is in transformers' `_compile_jinja_template`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(
        self,
        filters: Mapping[str, Callable[..., Any]],
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        del self.globals["lipsum"]  # texts for no language model
        self.globals |= {**functions, "namespace": _Namespace}
        for name, function in {**self.filters, **filters}.items():
            is_free = name in _FREE_FILTERS
            self.filters[name] = function if is_free else _paid_filter(name, function)
        for name in _READING_TESTS:
            self.tests[name] = _paid_test(self.tests[name])  # type: ignore[arg-type]
        self.filters |= {_PAY: _pay, _READ: _read, _READ_ITEMS: _read_items}

    def compiled(self, source: str) -> Callable[[dict[str, Any]], str]:
        """The template as a function of its variables.

        Raises what jinja and Python do for a source that is none; what the function raises is the
        template's, or `OverLimitsError`.
        """
        tree = self.parse(source)
        num_nodes = sum(1 for _ in tree.find_all(Node))
        if num_nodes > MAX_NODES:
            raise OverLimitsError(f"it has {num_nodes} parts, over {MAX_NODES}")
        tree = _Payments().visit(tree)
        template = self.from_string(tree.set_environment(self))

        def render(variables: dict[str, Any]) -> str:
            token = _METER.set(Meter(variables.values()))
            try:
                # Not `template.render`: for an error it compiles code for each frame of the stack.
                return self.concat(template.root_render_func(template.new_context(variables)))
            finally:
                _METER.reset(token)

        return render

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What each output goes through: that of a macro or a block, and the whole."""
        return _METER.get().output(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        match operator:
            case "+" if isinstance(left, str | list | tuple):
                meter.read_items(left)
                meter.read_items(right)
            case "*":
                meter.times(left, right)
            case "**":
                meter.power(left, right)
            case "%" if isinstance(left, str):
                meter.format(left, right if isinstance(right, tuple) else (right,))
            case _:
                meter.read(left)
                meter.read(right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            is_known = attr in _STR_METHODS
        elif isinstance(value, BuiltinMethodType):
            is_known = attr in _METHODS.get(type(obj), ())
        else:
            is_known = True
        return is_known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None
        pattern = value.__self__

        def paid(*args: Any, **kwargs: Any) -> str:
            _METER.get().format(pattern, (*args, *kwargs.values()))
            return formatted(*args, **kwargs)

        return paid

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if not isinstance(__obj, _OWN_CODE) and __obj is not _Namespace:
            args = tuple(map(_held, args))
            _pay_call(_METER.get(), __obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Namespace(Namespace):
    """Never shows what is in it: it can be in itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Generation(Extension):
    """`{% generation %}`, which marks what to train on; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# -- payments in the syntax tree ------------------------------------------------------------------


class _Payments(NodeTransformer):
    def __init__(self) -> None:
        self._work = 0  # of each node once, so far

    def generic_visit(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        self._work += _STEP * (1 + _MADE.get(type(node), 0))
        for field in ("dyn_args", "dyn_kwargs"):  # `*` and `**` of calls, filters and tests
            if getattr(node, field, None) is not None:
                setattr(node, field, _paid(_READ_ITEMS, getattr(node, field)))
        return super().generic_visit(node, *args, **kwargs)

    def visit_body(self, node: Any) -> Any:
        """Of what can run many times."""
        before = self._work
        self.generic_visit(node)
        payment = _paid(_PAY, nodes.Const(self._work - before))
        node.body.insert(0, nodes.ExprStmt(payment, lineno=node.lineno))
        if getattr(node, "test", None) is not None:  # `for … if`
            node.test = nodes.And(payment, node.test)
        return node

    visit_For = visit_body  # noqa: N815

    def visit_function(self, node: Any) -> Any:
        self._work += _CALL
        return self.visit_body(node)

    visit_Macro = visit_CallBlock = visit_Block = visit_function  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_read_of(child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_read_of(child) for child in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _read_of(node.expr)
        for operand in node.ops:
            operand.expr = _read_of(operand.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _read_of(node.key)  # for its hash
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _paid(_READ_ITEMS, node.node)
        else:
            node.arg = _read_of(node.arg)
        return node


# What these nodes make can be kept, and is larger than the code.
_MADE: dict[type[Node], int] = {nodes.List: 16, nodes.Tuple: 16, nodes.Dict: 48}


def _read_of(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.TemplateData | nodes.Const) else _paid(_READ, node)


def _paid(name: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _pay(work: int) -> bool:
    _METER.get().charge(work)
    return True


def _read(value: Any) -> Any:
    held = _held(value)
    _METER.get().read(held)
    return held


def _read_items(value: Any) -> Any:
    held = _held(value)
    _METER.get().read_items(held)
    return held


# -- payments for calls, filters and tests --------------------------------------------------------


def _held(value: Any) -> Any:
    """An iterator as what it gives, so that it can be read."""
    if hasattr(value, "__next__") and not isinstance(value, LoopContext):
        return list(_METER.get().counted(value))
    return value


def _pay_call(meter: Meter, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    # jinja passes more, of names that begin with _.
    values = [*args, *(value for key, value in kwargs.items() if key[0] != "_")]
    meter.charge(_CALL)
    match owner, name:
        case str(), "replace" if len(values) > 1:
            meter.replace(owner, values[0], values[1])
        case str(), "join" if values and hasattr(values[0], "__len__"):
            meter.join(values[0], owner)
        case str(), "center" | "ljust" | "rjust" | "zfill":
            meter.multiply(owner, values)
        case (str(), _) | (list(), _) | (tuple(), _):
            size = meter.read(owner)
            meter.charge(ITEM * size if name in _MAKE_ITEMS else 0)
    for value in values:
        meter.read(value)


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # behind jinja's own argument

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        held = [*args[:first], *map(_held, args[first:])]
        value, *others = [*held[first:], *kwargs.values()]
        if name == "format" and isinstance(value, str):
            meter.format(value, others)
        elif name == "replace" and len(others) > 1 and not kwargs:
            meter.replace(value, others[0], others[1])
        elif name == "join" and hasattr(value, "__len__"):
            meter.join(value, "".join(map(str, others)))
        elif name in _ITEM_FILTERS:
            meter.multiply_items(value, others)
        else:
            size = meter.multiply(value, others)
            meter.charge(size * size // 64 if name in _SQUARE_FILTERS else 0)
        return function(*held, **kwargs)

    return paid


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def paid(*args: Any) -> Any:
        return function(*map(_read, args))

    return paid
