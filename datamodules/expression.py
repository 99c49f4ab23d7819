"""f(x) as a function on tensors: an expression in Python's syntax, computed from its syntax tree, never by ``eval``."""

import ast
import math
import operator
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

MAX_LENGTH = 1000  # characters: parsing a much longer text could exhaust the stack
LARGEST = 1e150  # the largest |f(x)|: its square is still finite in float64
SYMBOLS = "Add:add Sub:sub Mult:mul Div:truediv Pow:pow USub:neg UAdd:pos Lt:lt LtE:le Gt:gt GtE:ge Eq:eq NotEq:ne"
OPERATORS = {  # by their classes in ast
    getattr(ast, name): getattr(operator, function) for name, function in (pair.split(":") for pair in SYMBOLS.split())
}
UNARY = "sin cos tan asin acos atan sinh cosh tanh exp log log2 log10 sqrt abs sign floor ceil relu sigmoid sinc"
FUNCTIONS = {  # by name and number of arguments
    **{(name, 1): getattr(torch, name) for name in UNARY.split()},
    **{(name, 2): getattr(torch, name) for name in ("min", "minimum", "max", "maximum", "heaviside")},
    ("heaviside", 1): lambda a: torch.heaviside(a, a.new_tensor(0.5)),
    ("where", 3): lambda c, a, b: torch.where(c != 0, a, b),
}


def evaluate(expression: str, x: Tensor) -> Tensor:
    """The expression's value at every element of ``x``, a float64 tensor of any shape; it may be infinite or nan.

    The language is Python's, of ``x``, ``pi``, ``e``, numbers, ``+ - * / **``, FUNCTIONS, comparisons, which are 1 or 0
    as a number, and ``a if c else b``, whose branch not taken may be infinite or nan. ``heaviside(x, v)`` is v at 0, or
    0.5. Raises ValueError where the text is longer than MAX_LENGTH characters, or not in this language.
    """
    names = {"x": x, "pi": x.new_tensor(math.pi), "π": x.new_tensor(math.pi), "e": x.new_tensor(math.e)}
    try:
        if len(expression) > MAX_LENGTH:
            raise ValueError(f"it has {len(expression)} characters; at most {MAX_LENGTH}")
        return _value(ast.parse(expression.strip(), "f(x)", "eval").body, names).expand(x.shape)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:  # most of them Python's
        raise ValueError(f"the function {shown(expression)} cannot be used: {str(error) or 'too deep'}") from None


def finite_values(expression: str, x: Tensor) -> Tensor:
    """As ``evaluate``; ValueError also where, at an element of ``x``, f is not finite or its size is above LARGEST."""
    places = torch.cat([x, x.round(decimals=9).clamp(x.min(), x.max())])  # an even grid may hold 1e-16 in place of 0
    outside = places[~(evaluate(expression, places).abs() <= LARGEST)]
    if len(outside):
        raise ValueError(
            f"the function {shown(expression)} is not finite or exceeds {LARGEST:g} at x = {outside.min() + 0.0:.6g}; "
            "choose another interval (--x_min, --x_max) or a value there, as in sin(x)/x if x != 0 else 1, a sinc"
        )
    return evaluate(expression, x)


def shown(text: str) -> str:
    """The text in quotes, on one line, its end cut off where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _value(node: ast.expr, names: Mapping[str, Tensor]) -> Tensor:
    """A float64 tensor of x's shape or with none."""
    match node:
        case ast.Constant(value=int() | float() as constant) if not isinstance(constant, bool):
            return torch.tensor(float(constant), dtype=torch.float64)
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=op, operand=a) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(a, names))
        case ast.BinOp(left=a, op=op, right=b) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(a, names), _value(b, names))
        case ast.Compare(left=a, ops=ops, comparators=others) if set(map(type, ops)) <= OPERATORS.keys():
            values = [_value(part, names) for part in (a, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return reduce(torch.logical_and, [OPERATORS[type(op)](v, w) for op, v, w in pairs]).double()
        case ast.IfExp(test=c, body=a, orelse=b):
            return FUNCTIONS["where", 3](_value(c, names), _value(a, names), _value(b, names))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (name, len(args)) in FUNCTIONS:
            return FUNCTIONS[name, len(args)](*(_value(arg, names) for arg in args))
    known = f"x, pi, e, numbers, + - * / **, comparisons and {' '.join(dict(FUNCTIONS.keys()))}"
    raise ValueError(f"{ast.unparse(node)[:40]!r} is none of {known}")
