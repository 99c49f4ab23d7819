"""Random and hostile texts as f(x): each is a value or one line of error.

FUZZ says how many texts. What an error on a text advises to write works.
"""

import ast
import os
import random

import pytest
import torch

from datamodules.expression import MAX_LENGTH, ExpressionError, evaluate
from datamodules.spelling import MEANINGS, OF_ONE

FUZZ = int(os.environ.get("FUZZ", "20000"))
NUMBERS = "0 1 2 3.5 1e9 1e308 1e999 .5 1_000 0x1f 1j 9999999999999999999999 00 1e".split()
HOSTILE = [
    "x.__class__",
    "().__class__.__bases__[0].__subclasses__()",
    "__import__('os').system('true')",
    "open('/etc/passwd')",
    "eval('x')",
    "exec('x')",
    "(lambda: x)()",
    "[x for x in (1, 2)]",
    "{1: x}",
    "x if x else 1",
    "x := 3",
    "f'{x}'",
    "x[0]",
    "x.data",
    "x.numpy()",
    "sin.__globals__",
    "sin.__call__(x)",
    "globals()",
    "getattr(x, 'data')",
    "*x",
    "**x",
    "9**9**9**9",
    "9" * 400,
    "1e308 * 1e308",
    "'a' * 9**9",
    "x @ x",
    "x // 0",
    "x % 0",
    "x and x",
    "not x",
    "x < x",
    "...",
    "None",
    "True",
    "x;x",
    "x\n\nx",
    "#",
    "x # y",
    "\x00",
    "\ufeffx",
    "ｘ",
    "x̂",
    "sin",
    "sin(sin)",
    "sin(x)(x)",
    "sin(*[x])",
    "sin(input=x)",
    "minimum(x)",
    "maximum(x, x, x)",
    "await x",
    "yield x",
    "import os",
    "print(x)",
    "x!",
    "x²",
    "√x",
    "1 if",
    "x^2",
    "2x",
    "0,5x",
    "sin²x",
    "|x|",
    "\\frac{x}{2}",
    "x > 0 ? x : 0",
    "f(t) = t",
    "lambda x: x",
    "np.sin(x)",
    "x.abs()",
]
CHARACTERS = "xpie0123456789.+-*/()[]{}_,'\"\\ \t\n=:;<>@!%^&|~`$#abcdefgλ試😀²⁻ˣ√½π·×−—≤“，ｘ\x00\x7f\u2028\ud800"


DEEP = [("(", ")"), ("sin(", ")"), ("-", ""), ("x**", ""), ("x+", ""), ("[", "]"), ("|", "|"), ("{", "}")]
DEEP += [
    ("x^", ""),
    ("2(", ")"),
    ("sin^2", ""),
    ("pow(", ",x)"),
    ("\\frac{1}{", "}"),
    ("x if x=", " else x"),
    (" ", ""),
]
WORDS = [
    *OF_ONE,
    *(key.partition("(")[0] for key in MEANINGS),
    *NUMBERS,
    *"x t pi π e ( ( ) ) , ** ^ * / - . | = [ ] \\".split(),
]
WORDS += "lambda for in if else and not < > ? : ² √ np. x( 2x ;".split() + [" ", " ", "\n"]


def valid(dice: random.Random, depth: int) -> str:
    kind = dice.randrange(10) if depth else dice.randrange(2)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice(("x", "x", "x", "pi", "e"))
    if kind == 2:
        return f"{dice.choice('+-')}{valid(dice, depth - 1)}"
    if kind == 3:
        return f"{dice.choice(OF_ONE)}({valid(dice, depth - 1)})"
    if kind == 4:
        return f"{dice.choice(('min', 'max', 'heaviside'))}({valid(dice, depth - 1)}, {valid(dice, depth - 1)})"
    if kind == 5:
        return f"({valid(dice, depth - 1)} if {valid(dice, depth - 1)} < x else {valid(dice, depth - 1)})"
    operator = dice.choice(("+", "-", "*", "/", "**", "//", "%", "<", ">="))
    return f"({valid(dice, depth - 1)} {operator} {valid(dice, depth - 1)})"


def text(dice: random.Random) -> str:
    kind = dice.randrange(6)
    if kind == 0:
        return valid(dice, dice.randrange(6))
    if kind == 1:  # nearly valid
        characters = list(valid(dice, 4))
        for _ in range(dice.randint(1, 3)):
            characters[dice.randrange(len(characters))] = dice.choice(CHARACTERS) * dice.randrange(3)
        return "".join(characters)
    if kind == 2:
        return "".join(dice.choice(CHARACTERS) for _ in range(dice.randrange(60)))
    if kind == 3:  # hostile, alone or inside something
        inner = dice.choice(HOSTILE)
        return inner if dice.random() < 0.5 else valid(dice, 3).replace("x", inner, 1)
    if kind == 4:  # deep or long
        opening, closing = dice.choice(DEEP)
        times = dice.randrange(MAX_LENGTH // len(opening) + 20)
        return opening * times + "x" + closing * times
    return "".join(dice.choice(WORDS) for _ in range(dice.randrange(25)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_every_text_is_a_tensor_or_one_line_of_error() -> None:
    dice, x, accepted = random.Random(0), torch.linspace(-2, 2, 3, dtype=torch.float64), 0
    for _ in range(FUZZ):
        function = text(dice)
        try:
            y = evaluate(function, x)
        except ExpressionError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 1200, repr(function)
            if " as it is written: write " in message:
                evaluate(ast.literal_eval(message.split(" as it is written: write ")[1]), x)
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {function!r}") from error
        else:
            assert y.shape == x.shape and y.dtype == torch.float64, repr(function)
            accepted += 1
    assert accepted > FUZZ / 20  # the texts reach the arithmetic too
