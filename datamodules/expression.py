"""f(x) typed by a user, as a function on tensors: evaluated by simpleeval on the syntax tree, never by ``eval``."""

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import simpleeval
import torch
from torch import Tensor

MAX_LENGTH = 1000  # characters: a longer text is a mistake or an attack, and parsing it could exhaust the stack
_UNARY = "sin cos tan asin acos atan sinh cosh tanh exp log log2 log10 sqrt abs sign floor ceil".split()
_BINARY = ["minimum", "maximum"]


class ExpressionError(ValueError):
    """The expression cannot be used; the message is one line that says why."""


def _function(name: str, arity: int) -> Callable[..., Tensor]:
    function = getattr(torch, name)

    def call(*args: Tensor, **kwargs: Any) -> Tensor:
        if len(args) != arity or kwargs:
            raise ExpressionError(f"{name}() takes {arity} argument{'s'[: arity > 1]}")
        return function(*args)

    return call


class _Evaluator(simpleeval.SimpleEval):
    """simpleeval reduced to arithmetic; every number is a float64 tensor, so 9**9**9 is infinity, at no cost."""

    def __init__(self, x: Tensor) -> None:
        constants = {name: torch.tensor(getattr(math, name), dtype=torch.float64) for name in ("pi", "e")}
        super().__init__(
            operators={
                ast.Add: operator.add,
                ast.Sub: operator.sub,
                ast.Mult: operator.mul,
                ast.Div: operator.truediv,
                ast.Pow: operator.pow,
                ast.USub: operator.neg,
                ast.UAdd: operator.pos,
            },
            functions={n: _function(n, 1) for n in _UNARY} | {n: _function(n, 2) for n in _BINARY},
            names={"x": x, **constants},
        )
        kept = (ast.Constant, ast.Name, ast.Call, ast.BinOp, ast.UnaryOp)
        nodes: dict[Any, Any] = {node: self.nodes[node] for node in kept}  # type: ignore[has-type]
        self.nodes = nodes | {ast.Constant: self._number}

    @staticmethod
    def _number(node: ast.Constant) -> Tensor:
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ExpressionError(f"{str(node.value)[:40]!r} is not a number")
        return torch.tensor(float(node.value), dtype=torch.float64)


def evaluate(expression: str, x: Tensor) -> Tensor:
    """The expression's value at every element of ``x``, a float64 tensor of any shape.

    The language is Python's arithmetic of ``x``: ``+ - * / **``, parentheses, numbers, ``pi``, ``e`` and the functions
    named in this file. Values may be infinite or nan; ``check_finite`` finds them.

    Raises:
        ExpressionError: it is not in this language, or longer than MAX_LENGTH characters.
    """
    shown = expression if len(expression) <= 60 else expression[:57] + "..."
    shown = " ".join(shown.split())
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(f"the function {shown!r} has {len(expression)} characters; at most {MAX_LENGTH}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on odd literals
            tree = ast.parse(expression.strip(), mode="eval")  # one expression, where simpleeval would take the first
        value = _Evaluator(x).eval(expression, previously_parsed=tree.body)
    except ExpressionError as error:
        raise ExpressionError(f"the function {shown!r} cannot be used: {error}") from None
    except simpleeval.NameNotDefined as error:
        raise ExpressionError(
            f"the function {shown!r} names {error.name[:40]!r}, which is unknown ({_KNOWN})"
        ) from None
    except simpleeval.FunctionNotDefined as error:
        raise ExpressionError(
            f"the function {shown!r} calls {error.func_name[:40]!r}, which is unknown ({_KNOWN})"
        ) from None
    except simpleeval.OperatorNotDefined:
        hint = ": a power is x**2, not x^2" if "^" in expression else ""
        raise ExpressionError(
            f"the function {shown!r} uses more than arithmetic: an operator other than + - * / **{hint}"
        ) from None
    except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        raise ExpressionError(f"the function {shown!r} is not an expression of x: {_one_line(error)}") from None
    except (simpleeval.InvalidExpression, AttributeError, TypeError, KeyError) as error:
        raise ExpressionError(
            f"the function {shown!r} uses more than arithmetic and known functions ({_KNOWN}): {_one_line(error)}"
        ) from None
    if not isinstance(value, Tensor):
        raise ExpressionError(f"the function {shown!r} is not a number for each x")
    return value.expand(x.shape)


def check_finite(expression: str, x_min: float, x_max: float) -> None:
    """Raises ExpressionError, saying where, unless f is finite and of usable size on [x_min, x_max].

    f is looked at on 10,001 points, and between them where it is largest: a pole seldom falls on a grid point,
    but as one zooms in on it, f grows without bound.
    """
    x = torch.linspace(x_min, x_max, 10_001, dtype=torch.float64)
    if x_min < 0 < x_max:
        x = torch.cat([x, x.new_zeros(1)]).sort().values  # where 1/x, log(x), ... have their pole
    y = evaluate(expression, x)
    size = y.abs()
    if not bool(size.isfinite().all()):
        _refuse(expression, x[~size.isfinite()][0].item())
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
            _refuse(expression, zoom[best, columns][grown][0].item())
        low, high = zoom[(best - 1).clamp(0), columns], zoom[(best + 1).clamp(max=100), columns]
    if float(size.max()) > 1e150:
        raise ExpressionError(f"the function {expression!r} exceeds 1e150 on [{x_min:g}, {x_max:g}]: scale it down")


def _refuse(expression: str, where: float) -> None:
    raise ExpressionError(
        f"the function {expression!r} is not finite at x = {where:.6g}: choose an interval without it "
        "(--x_min, --x_max) or another function"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.args[0] if error.args else type(error).__name__).split())[:120]


_KNOWN = f"known: x pi e {' '.join(_UNARY + _BINARY)}"
