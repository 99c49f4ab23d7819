"""f(x) typed by a user, as a function on tensors: read from the syntax tree, never by ``eval``."""

import ast
import difflib
import math
import operator
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import reduce

import torch
from torch import Tensor

from datamodules.spelling import CONSTANTS, OF_ONE, OF_SEVERAL, corrected

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
MAX_LENGTH = 1000  # characters: a longer text is a mistake or an attack, and parsing it could exhaust the stack
NAMES = ["x", *CONSTANTS, *OF_ONE, *OF_SEVERAL]
OPERATORS: dict[type, Callable[..., Tensor]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class ExpressionError(ValueError):
    """The expression cannot be used; the message is one line that says why."""


def evaluate(expression: str, x: Tensor) -> Tensor:
    """The expression's value at every element of ``x``, a float64 tensor of any shape.

    The language is Python's, of the variable ``x``:

    - ``+ - * / // % **``, parentheses, numbers, ``pi`` (or ``π``) and ``e``
    - ``sin cos tan asin acos atan sinh cosh tanh exp log log2 log10 sqrt abs sign floor ceil``
    - ``relu(x)``, ``sigmoid(x)``; ``sinc(x)`` is NumPy's and PyTorch's, sin(pi*x)/(pi*x)
    - ``min``, ``max``, ``minimum``, ``maximum`` of two arguments or more
    - ``heaviside(x)`` is 0.5 at 0, ``heaviside(x, v)`` is v there
    - comparisons, as in ``0 < x < 1``, which ``and``, ``or``, ``not`` join; as a number one is 1 or 0, a step
    - ``a if c else b`` and ``where(c, a, b)``: infinity or nan in the branch not taken does not matter

    Values may be infinite or nan; ``check_finite`` finds them.

    Raises:
        ExpressionError: it is longer than MAX_LENGTH characters, or not in this language. If the text has one meaning
            all the same, the message shows how to write it.
    """
    shown = " ".join((expression if len(expression) <= 60 else expression[:57] + "...").split())
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(f"the function {shown!r} has {len(expression)} characters; at most {MAX_LENGTH}")
    try:
        return _evaluate(expression, x)
    except ValueError as error:
        reason = f"cannot be used: {error}"
    try:
        better = corrected(expression)
        _evaluate(better, x)
        if len(better) <= MAX_LENGTH:
            reason = f"cannot be used as it is written: write {better!r}"
    except (SyntaxError, UnicodeError, RecursionError, MemoryError):
        pass  # the first reason says more
    except ValueError as error:
        reason = f"cannot be used: {error}"
    raise ExpressionError(f"the function {shown!r} {reason}")


def _evaluate(expression: str, x: Tensor) -> Tensor:
    """As ``evaluate``; the error says what is wrong and nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on odd literals
            tree = ast.parse(expression.strip(), mode="eval")
        return _value(tree.body, x).double().expand(x.shape)
    except SyntaxError as error:
        raise ExpressionError(_what_is_unreadable(expression, error)) from None
    except (RecursionError, MemoryError):
        raise ExpressionError("it is nested too deeply") from None
    except OverflowError:
        raise ExpressionError("it has a number that is too large") from None
    except UnicodeError:
        raise ExpressionError("it has characters that are no text") from None


def _what_is_unreadable(expression: str, error: SyntaxError) -> str:
    if not expression.strip():
        return "it is empty; write f(x), such as x**2"
    opened: list[str] = []
    for i, character in enumerate(expression):
        if character == "(":
            opened.append(expression[i:])
        elif character == ")" and not opened:
            return f"the ')' after {_start(expression[max(0, i - 20) : i])!r} has no '('"
        elif character == ")":
            opened.pop()
    if opened:
        return f"the '(' of {_start(opened[-1])!r} has no ')'"
    if " if " in expression and "else" not in expression:
        return "an 'if' needs an 'else', as in x if x > 0 else 0"
    rest = (error.text or "")[error.offset - 1 :] if error.offset else ""
    return f"it cannot be read from {_start(rest)!r} on" if rest.strip() else "something is missing at its end"


def _start(text: str) -> str:
    return " ".join(text.split())[:20]


def _value(node: ast.expr, x: Tensor) -> Tensor:
    """A float64 tensor, or of a condition a bool one, of x's shape or with none."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return torch.tensor(float(value), dtype=torch.float64)
        case ast.Name(id="x"):
            return x
        case ast.Name(id=name) if name in FUNCTIONS:
            raise ExpressionError(f"{name} is a function: write {name}(x)")
        case ast.Name(id=name):
            if name not in CONSTANTS:
                raise _unknown(name, "the variable is x")
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
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _call(name, [_value(arg, x) for arg in args])
        case ast.Tuple(elts=[_, *_]):
            raise ExpressionError("it has a comma outside of a function's arguments; a decimal point is '.'")
        case ast.Constant():
            raise ExpressionError(f"{ast.unparse(node)[:40]} is not a number")
    raise ExpressionError(f"{ast.unparse(node)[:40]!r} is more than arithmetic, comparisons and the known functions")


def _call(name: str, args: list[Tensor]) -> Tensor:
    if name not in FUNCTIONS and name in NAMES:
        raise ExpressionError(f"{name} is a number, not a function")
    if name not in FUNCTIONS:
        raise _unknown(name, f"the functions are {' '.join(FUNCTIONS)}")
    function, least, most = FUNCTIONS[name]
    if not least <= len(args) <= most:
        wanted = f"{least}" if least == most else f"{least} or 2" if most == 2 else f"{least} or more"
        raise ExpressionError(f"{name}() takes {wanted} argument{'s'[: most > 1]}, not {len(args)}")
    first = _condition(args[0]) if name == "where" else args[0].double()
    return function(first, *(arg.double() for arg in args[1:]))


def _condition(value: Tensor) -> Tensor:
    if value.dtype != torch.bool:
        raise ExpressionError("a condition is a comparison, such as x > 0")
    return value


def _unknown(name: str, otherwise: str) -> ExpressionError:
    close = difflib.get_close_matches(name, NAMES, 1, cutoff=0.7)
    if close and name.lower() in {prefix + close[0] for prefix in ("a", "ar", "arc")}:
        close = []  # its inverse is another function
    return ExpressionError(f"{name[:40]!r} is unknown: {f'did you mean {close[0]}?' if close else otherwise}")


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int, float]] = {  # and the least and the most arguments
    **{name: (getattr(torch, name), 1, 1) for name in OF_ONE},
    **dict.fromkeys(("min", "minimum"), (lambda *args: reduce(torch.minimum, args), 2, math.inf)),
    **dict.fromkeys(("max", "maximum"), (lambda *args: reduce(torch.maximum, args), 2, math.inf)),
    "heaviside": (lambda a, *at_zero: torch.heaviside(a, *(at_zero or [a.new_tensor(0.5)])), 1, 2),
    "where": (torch.where, 3, 3),
}


def check_finite(expression: str, x_min: float, x_max: float) -> None:
    """Raises ExpressionError, saying where, unless f is finite and of usable size on [x_min, x_max].

    f is looked at on 10,001 points and round numbers, and between them where it is largest: a pole seldom falls on a
    grid point, but as one zooms in on it, f grows without bound.
    """
    x = torch.linspace(x_min, x_max, 10_001, dtype=torch.float64)
    decimals = 4 - math.floor(math.log10(x_max - x_min))
    round_numbers = x.round(decimals=min(decimals, 300)).clamp(x_min, x_max)  # 0, 0.3: where formulas have their poles
    places = torch.cat([x, round_numbers, torch.linspace(x_min, x_max, 1001, dtype=torch.float64)]).sort().values
    finite = evaluate(expression, places).isfinite()
    if not bool(finite.all()):
        first = int(finite.int().argmin())
        stretch = places[first : first + int((~finite[first:]).int().cumprod(0).sum())]
        if stretch[-1] > stretch[0]:
            low, high = (value if abs(value) > 1e-9 * (x_max - x_min) else 0 for value in stretch[[0, -1]].tolist())
            where = f"between x = {low:.4g} and {high:.4g}"
            advice = "choose an interval outside it (--x_min, --x_max) or another function"
            raise ExpressionError(f"the function {expression!r} is not finite {where}: {advice}")
        raise _not_finite(expression, stretch[0].item(), x_min, x_max)
    # Spread so that no periodic function is 0 on all of them.
    x[1:-1] += (x_max - x_min) / 10_000 * (torch.arange(1, 10_000) * GOLDEN_RATIO % 1 - 0.5)
    size = evaluate(expression, x).abs()
    peaks = size[1:-1].ge(size[:-2]) & size[1:-1].ge(size[2:])
    highest = (size[1:-1] * peaks).topk(20).indices + 1
    low, high, reference = x[highest - 1], x[highest + 1], size[highest].maximum(size.mean())
    for _ in range(12):  # each round narrows every bracket 50-fold, to the spacing of float64
        zoom = low + (high - low) * torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
        values = evaluate(expression, zoom).abs().nan_to_num(nan=math.inf)
        best = values.argmax(0)
        columns = torch.arange(len(highest))
        grown = values[best, columns] > 1e6 * reference
        if bool(grown.any()):
            raise _not_finite(expression, zoom[best, columns][grown][0].item(), x_min, x_max)
        low, high = zoom[(best - 1).clamp(0), columns], zoom[(best + 1).clamp(max=100), columns]
    if float(size.max()) > 1e150:
        raise ExpressionError(f"the function {expression!r} exceeds 1e150 on [{x_min:g}, {x_max:g}]: scale it down")


def _not_finite(expression: str, where: float, x_min: float, x_max: float) -> ExpressionError:
    where = where if abs(where) > 1e-9 * (x_max - x_min) else 0.0
    is_finite = bool(evaluate(expression, torch.tensor(where, dtype=torch.float64)).isfinite())
    what = f"{'grows without bound near' if is_finite else 'is not finite at'} x = {where:.6g}"
    instead = "choose an interval without it (--x_min, --x_max)"
    limit = None if is_finite else _limit(expression, where, x_min, x_max)
    if limit is not None:
        what += f", where its limit is {limit:g}"
        body = f"({expression.strip()})" if " if " in expression else expression.strip()
        better = f"{body} if x != {_plain(where)} else {_plain(limit)}"
        with suppress(ExpressionError):
            check_finite(better, x_min, x_max)
            return ExpressionError(f"the function {expression!r} {what}: write {better!r}, or {instead}")
    return ExpressionError(f"the function {expression!r} {what}: {instead} or another function")


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")


def _limit(expression: str, where: float, x_min: float, x_max: float) -> float | None:
    """The limit of f at a point, from within the interval, if there is one and both sides have it in common."""
    steps = (x_max - x_min) * torch.tensor([[1e-4], [3e-5], [1e-5], [3e-6], [1e-6]], dtype=torch.float64)
    sides = torch.tensor([side for side in (-1, 1) if x_min <= where + side * steps[0].item() <= x_max])
    near = evaluate(expression, where + steps * sides)
    mean = near[-1].mean().item()
    size = evaluate(expression, torch.linspace(x_min, x_max, 101, dtype=torch.float64)).abs().nanmedian().item()
    tolerance = 1e-5 * (abs(mean) + size)
    change = abs(mean - near[0].mean().item())
    error = (near - mean).abs().amax(1)
    converges = error[-1] <= 0.1 * error[0] + tolerance and bool((error[1:] <= error[:-1] + tolerance).all())
    if not (0 < tolerance < math.inf and change <= 1e3 * tolerance and converges):  # a pole's change is larger
        return None
    return round(mean, math.floor(-math.log10(change + error[-1].item() + 1e-4 * tolerance))) + 0.0
