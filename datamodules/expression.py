"""f(x) as a function on tensors: an expression in Python's syntax, computed from its syntax tree, never by ``eval``."""

import ast
import math
import operator
import warnings
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

MAX_LENGTH = 1000  # characters: parsing a much longer text could exhaust the stack
LARGEST = 1e150  # the largest |f(x)|: its square is still finite in float64
CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e}
OPERATORS: dict[type, Callable[..., Tensor]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv},
    **{ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow},
    **{ast.USub: operator.neg, ast.UAdd: operator.pos},
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne},
}
# Functions of one argument. The table below adds the others, with the least and the most arguments of each.
UNARY = (
    "sin cos tan asin acos atan sinh cosh tanh exp log log2 log10 sqrt abs sign floor ceil relu sigmoid sinc".split()
)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int, float]] = {
    **{name: (getattr(torch, name), 1, 1) for name in UNARY},
    **dict.fromkeys(("min", "minimum"), (lambda *args: reduce(torch.minimum, args), 2, math.inf)),
    **dict.fromkeys(("max", "maximum"), (lambda *args: reduce(torch.maximum, args), 2, math.inf)),
    "heaviside": (lambda a, *at_zero: torch.heaviside(a, *(at_zero or [a.new_tensor(0.5)])), 1, 2),
    "where": (torch.where, 3, 3),
}


def evaluate(expression: str, x: Tensor) -> Tensor:
    """The expression's value at every element of ``x``, a float64 tensor of any shape; it may be infinite or nan.

    The language is Python's, of ``x``, ``pi``, ``e``, numbers, ``+ - * / // % **``, FUNCTIONS, comparisons, which
    ``and``, ``or`` and ``not`` join and which are 1 or 0 as a number, ``a if c else b`` and ``where(c, a, b)``, whose
    branch not taken may be infinite or nan. ``heaviside(x)`` is 0.5 at 0, and ``heaviside(x, v)`` is v there;
    ``sinc(x)`` is sin(pi*x)/(pi*x), as in NumPy.

    Raises:
        ValueError: the text is longer than MAX_LENGTH characters, or not in this language.
    """
    try:
        if len(expression) > MAX_LENGTH:
            raise ValueError(f"it has {len(expression)} characters; at most {MAX_LENGTH}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on odd literals
            tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body, x).double().expand(x.shape)
    except SyntaxError as error:
        rest = (error.text or "")[error.offset - 1 :].strip() if error.offset else ""
        reason = f"{error.msg.partition('.')[0]} at {rest[:20]!r}" if rest else f"{error.msg} at its end"
    except (RecursionError, MemoryError):
        reason = "it is nested too deeply"
    except (ValueError, OverflowError) as error:  # also Python's, of characters that are no text and large numbers
        reason = str(error)
    raise ValueError(f"the function {shown(expression)} cannot be used: {reason}")


def finite_values(expression: str, x: Tensor) -> Tensor:
    """As ``evaluate``; ValueError also where, at an element of ``x``, f is not finite or its size is above LARGEST."""
    rounded = x.round(decimals=9).clamp(x.min(), x.max())  # an even grid may hold 1e-16 in place of 0, the pole of 1/x
    places = torch.cat([x, rounded])
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


def _value(node: ast.expr, x: Tensor) -> Tensor:
    """A float64 tensor, or of a condition a bool one, of x's shape or with none."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return torch.tensor(float(value), dtype=torch.float64)
        case ast.Name(id="x"):
            return x
        case ast.Name(id=name) if name in CONSTANTS:
            return torch.tensor(CONSTANTS[name], dtype=torch.float64)
        case ast.UnaryOp(op=ast.Not(), operand=a):
            return ~_condition(_value(a, x))
        case ast.UnaryOp(op=op, operand=a) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(a, x).double())
        case ast.BinOp(left=a, op=op, right=b) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(a, x).double(), _value(b, x).double())
        case ast.Compare(left=a, ops=ops, comparators=others) if set(map(type, ops)) <= OPERATORS.keys():
            values = [_value(part, x).double() for part in (a, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return reduce(torch.logical_and, [OPERATORS[type(op)](v, w) for op, v, w in pairs])
        case ast.BoolOp(op=op, values=parts):
            join = torch.logical_and if isinstance(op, ast.And) else torch.logical_or
            return reduce(join, [_condition(_value(part, x)) for part in parts])
        case ast.IfExp(test=c, body=a, orelse=b):
            return torch.where(_condition(_value(c, x)), _value(a, x).double(), _value(b, x).double())
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _call(name, [_value(arg, x) for arg in args])
    known = f"x, pi, e, numbers, arithmetic, comparisons and {' '.join(FUNCTIONS)}"
    raise ValueError(f"{ast.unparse(node)[:40]!r} is none of {known}")


def _call(name: str, args: list[Tensor]) -> Tensor:
    function, least, most = FUNCTIONS[name]
    if not least <= len(args) <= most:
        raise ValueError(f"{name}() takes from {least} to {most} arguments, not {len(args)}")
    first = _condition(args[0]) if name == "where" else args[0].double()
    return function(first, *(arg.double() for arg in args[1:]))


def _condition(value: Tensor) -> Tensor:
    if value.dtype != torch.bool:
        raise ValueError("a condition is a comparison, such as x > 0")
    return value
