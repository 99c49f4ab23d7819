"""f(x): what standard expressions are worth, how other spellings are read, and what is refused."""

import ast
import math
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datamodules import CurveDataModule
from datamodules.expression import FUNCTIONS, evaluate
from datamodules.spelling import standard

POINTS = (-1.7, -0.5, 0.0, 0.3, 2.4)
PYTHON = vars(math) | {"π": math.pi, "abs": abs, "min": min, "minimum": min, "max": max, "maximum": max}
PYTHON |= {"sigmoid": lambda x: 1 / (1 + math.exp(-x)), "relu": lambda x: max(x, 0)}
PYTHON |= {"sign": lambda x: (x > 0) - (x < 0), "heaviside": lambda x, at_zero=0.5: at_zero if x == 0 else x > 0}
PYTHON |= {"sinc": lambda x: math.sin(math.pi * x) / (math.pi * x) if x else 1, "where": lambda c, a, b: a if c else b}


def python_value(expression: str, x: float) -> float:
    """nan where Python raises an error or would compute with complex numbers."""
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = float(node.value)  # 9**9**9 in whole numbers would take forever
    try:
        return float(eval(compile(tree, "f", "eval"), {"__builtins__": {}}, PYTHON | {"x": x}))
    except (ArithmeticError, ValueError, TypeError):
        return math.nan


def assert_means_what_python_means(expression: str) -> None:
    x = torch.tensor(POINTS, dtype=torch.float64)
    y = evaluate(expression, x)
    assert y.shape == x.shape and y.dtype == torch.float64
    for value, point in zip(y.tolist(), POINTS, strict=True):
        reference = python_value(expression, point)
        assert not math.isfinite(reference) or value == pytest.approx(reference, rel=1e-9, abs=1e-12), point


def parts(text: str) -> list[str]:
    """The parts between which there are three blanks or more, or a line's end."""
    return re.split(r" {3,}|\n\s*", text.strip())


STANDARD = [f"{name}(x)" for name, arguments in FUNCTIONS if arguments == 1] + ["x" + "+x-x" * 225, " x \n"]
STANDARD += parts("""
    x**2 + 2*sin(x) + cos(x-1) - 5   (x+1)**2 + sin(x**2+1) - log(x**2+1)   3   3e2   1_000.5e-1 * x   pi + e + π
    1 + 2 * x - 3 / 4   -x**2   (-x)**2   2**-x   2**3**2   +x - -x   π + .5 - 5.
    minimum(x, 0.5)   max(x, max(-x, 0.1))   heaviside(x, 1)   where(x >= 0, x**0.5, 0)   2*(x > 0) - (x < 0)
    -0.5 < x < 0.5   (x < -0.5) + (x != 2)   x if x else 2   x if x > 0 else -x if x > -1 else 2
    log(x) if x > 0 else 0   1/x if x != 0 else 0
""")


@pytest.mark.parametrize("expression", STANDARD)
def test_an_expression_in_pythons_syntax_stays_and_means_what_python_means(expression: str) -> None:
    assert standard(expression) == expression.strip()
    assert_means_what_python_means(expression.strip())


SPELLINGS = parts("""
    2x^2 - |x| + sin x -> 2*x**2 - abs(x) + sin(x)   -x^2 -> -x**2   2^-x -> 2**-x   2^x^2 -> 2**x**2
    2(x+1) -> 2*(x+1)   x (x+1) -> x*(x+1)   (x+1)(x-1) -> (x+1)*(x-1)
    sin(2x)cos(3x) -> sin(2*x)*cos(3*x)   x²x -> x**2*x   2x/3 -> 2*x/3   2·x − 3×x ÷ 4 -> 2*x - 3*x / 4
    x² + x³ + x⁻¹ + 2³ -> x**2 + x**3 + x**-1 + 2**3   2πx -> 2*π*x   2pi x -> 2*pi*x   3e^x -> 3*e**x
    1e3x + 2e -> 1e3*x + 2*e   x e^-x -> x*e**-x   e(x+1) -> e*(x+1)   x^2 sin(x) -> x**2*sin(x)
    e^-x cos 3x -> e**-x*cos(3*x)   sin 2x cos x + 1 -> sin(2*x)*cos(x) + 1   sin 2πx -> sin(2*π*x)
    1/sin x -> 1/sin(x)   ln(x) + arctan(x) -> log(x) + atan(x)   arcsin x -> asin(x)
    √x + 2√(x+1) -> sqrt(x) + 2*sqrt(x+1)   √(x+1)/2 -> sqrt(x+1)/2   √|x| -> sqrt(abs(x))   ln|x| -> log(abs(x))
    |x|² -> abs(x)**2   2||x|-1| -> 2*abs(abs(x)-1)   |x - |x|| -> abs(x - abs(x))   |x|-|2x| -> abs(x)-abs(2*x)
    |sin x| -> abs(sin(x))   np.sin(x) + numpy.pi -> sin(x) + pi   2math.exp(x) -> 2*exp(x)   torch.relu(x) -> relu(x)
    lambda x: 2x -> 2*x   lambda x: x**2 -> x**2   y = 2x -> 2*x   f(x) = x² -> x**2   f = lambda x: x -> x
    2x if x > 0 else |x| -> 2*x if x > 0 else abs(x)   where(2x<1, 3x, max(x, 2x)) -> where(2*x<1, 3*x, max(x, 2*x))
""")


@pytest.mark.parametrize("pair", SPELLINGS)
def test_usual_spellings_are_read(pair: str) -> None:
    text, expression = pair.split(" -> ")
    data = CurveDataModule(text, x_min=0.1, x_max=0.9)
    assert data.function == data.hparams["function"] == expression


UNCLEAR = parts("""
    1/2x   1/x²x   1/-2x   x/2 sin(x)   1/(2)x   1/x^2 sin(x)   e^2x   e^-2x   x^2x   x^2(x+1)   x^(2)x   e^x²x   x²^3
    e^2sin(x)   e^sin x cos x   sin x^2   sin x²   sin x(x+1)   sin x x   sin 2*x   sin x/2   √2x   √x²   √(x+1)²   √x*2
    √(x+1)(x-1)   ln|x|²   |x|x   |x|x|x|   |2|x|-1|   (|x)+x|   (|x))   |x   x||   2x)   sin(2x   2 3   x²2   x 2
    (x<0) | (x>1) | (x==3)   x<0 | x>1 | -x>5
""")


REFUSED = dict.fromkeys(UNCLEAR, "is not clear: write each .* parentheses")
REFUSED |= {"": "syntax", "x\nx": "syntax", "\0": "null", "\ud800": "surrogate", "9" * 900: "too large"}
REFUSED |= {"x+" * 9999 + "x": "19999 characters", "(" * 490 + "x" + ")" * 490: ""}
OTHERS = parts("""
    x +   x +* 2   x; x   x = 1   x if x > 0   sin   sin²x   sin^2(x)   sin cos x   sin -x   max(x, 1, 2)
    t^2 -> 't' is none of   sin(x, x) -> is none of   x // 2   x % 2   x < 1 or x > 2   not x
    xe^x   x2   f(2x)   0,5x   1j*x   x.real   sin.__globals__   x[0]   [1, 2]   b'x'   (x := 1)   x in x   ~x   x @ x
    1 << 9**9   sin(*x)   sin(input=x)   True   {x: x}   eval('1')   __import__('os').system('true')   (lambda: x)()
""")
REFUSED |= {text: match for text, _, match in (other.partition(" -> ") for other in OTHERS)}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_clear_or_not_in_the_language_gets_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=f"^the function .*({REFUSED[text]})") as caught:
        CurveDataModule(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# exp(100*x) exceeds 1e150 from 150*log(10)/100 = 3.454 on.
POLES = ["1/x at 0", "1/(x-1) at 1", "sqrt(x) at -5", "sin(x)/x at 0", "exp(100*x) at 3.46", "x/0 at -5"]


@pytest.mark.parametrize("pole", POLES)
def test_f_is_finite_and_of_usable_size_on_the_interval(pole: str) -> None:
    function, x = pole.split(" at ")
    with pytest.raises(ValueError, match=rf"not finite or exceeds 1e\+150 at x = {x}; choose another .* else 1"):
        CurveDataModule(function)


WORDS = "x x 2 .5 1e9 pi π e + - * / ^ ** ( ) , | ² ⁻¹ √ < if else not sin ln( max( np. y= lambda = ' [ . \\ ä".split()


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*WORDS, " ", " ", "\n"]), max_size=9).map("".join))
@example("x" * 100_000)
@example("|" * 999 + "x" + "|" * 999)
def test_any_text_is_refused_in_one_line_or_means_what_its_standard_form_means(text: str) -> None:
    try:
        expression = standard(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert standard(expression) == expression
        assert_means_what_python_means(expression)
