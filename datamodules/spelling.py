"""The usual other ways to write f(x), such as 2x^2, |x| or np.sin(x), rewritten in the language of expression.py."""

import re
from contextlib import suppress
from typing import NamedTuple

import torch

from datamodules.expression import FUNCTIONS, evaluate, shown

PREFIX = re.compile(r"(?:[fghy]\s*(?:\(\s*x\s*\)\s*)?=(?!=)\s*)?(?:lambda\s+x\s*:(?!=))?")  # y = ..., lambda x: ...
CHARACTERS = str.maketrans({"^": "**", "−": "-", "·": "*", "⋅": "*", "×": "*", "÷": "/"})
SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
NAMES = {"√": "sqrt", "ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "absolute": "abs"}
TOKEN = re.compile(
    r"(?P<space>[ \t]*)(?:(?P<number>(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)|(?P<parenthesis>\()|(?P<bar>\|)"
    r"|(?P<superscript>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)|(?P<operator>\*\*|//|[<>=!]=|(?:if|else|and|or|not)\b)"
    r"|(?:(?:np|numpy|math|torch)\.)?(?:(?P<name>π|(?:x|pi|e)\b)|(?P<function>√|[A-Za-z_]\w*))|(?P<other>.))",
    re.ASCII | re.DOTALL,
)
UNCLEAR = "is not clear: write each * and all parentheses, as in 1/(2*x), e**(2*x), sin(x**2), abs(x)"
UNCLEAR_BEHIND = {"superscript": ("**",), "root": ("**",), "bare": ("*", "/", "//", "%", "**")}  # kinds of operands


class _Token(NamedTuple):
    space: str  # before the text
    text: str
    kind: str  # its group in TOKEN


def standard(text: str) -> str:
    """The expression that the text stands for, in the language of ``evaluate``; one in it already is only stripped.

    Also read are ``x^2``, ``x²``, ``2x``, ``2(x+1)``, ``2·x``, ``√x``, ``|x|``, ``sin x``, ``np.sin(x)``,
    ``math.exp(x)``, ``ln(x)``, ``arctan(x)``, ``y = ...``, ``f(x) = ...`` and ``lambda x: ...``.

    Raises:
        ValueError: the text cannot be read, or can be read in two ways, as ``1/2x`` or ``sin x^2``.
    """
    expression = PREFIX.sub("", text.strip(), count=1).strip()
    no_points = torch.empty(0, dtype=torch.float64)
    with suppress(ValueError):
        evaluate(expression, no_points)
        return expression
    matches = TOKEN.finditer(expression.translate(CHARACTERS))
    tokens = [_Token(match["space"], match[str(match.lastgroup)], str(match.lastgroup)) for match in matches]
    try:
        rewritten = _read(tokens[::-1])
    except (ValueError, RecursionError):
        raise ValueError(f"the function {shown(expression)} {UNCLEAR}") from None
    evaluate(rewritten, no_points)
    return rewritten


def _read(tokens: list[_Token], closing: str = "") -> str:
    """Takes the tokens, last one first, up to the closing parenthesis or bar, which is left, and rewrites them."""
    text = ""
    left = ""  # the kind of the operand that the text ends with, see _operand; empty behind an operator
    is_divisor = is_exponent = False  # whether that operand is one
    # A bar behind an operator opens another pair.
    while tokens and not (closing and (tokens[-1].text == ")" or (tokens[-1].text == closing and left))):
        token = tokens.pop()
        if token.kind == "superscript":
            if left in UNCLEAR_BEHIND:
                raise ValueError
            text += f"{token.space}**{token.text.translate(SUPERSCRIPTS)}"
            left = token.kind
        elif token.kind in ("operator", "other"):
            if token.text in UNCLEAR_BEHIND.get(left, ()):
                raise ValueError
            if left:  # else it is a sign
                is_divisor = token.text in ("/", "//", "%") or (token.text == "**" and is_divisor)
                is_exponent = token.text == "**"
            text += token.space + token.text
            left = ""
        else:
            is_apart = token.kind == "function" and token.space  # as in x^2 sin(x), sin x cos x
            needs_space = is_exponent or left in ("bars", "root", "bare")
            if left and (token.kind == "number" or is_divisor or (needs_space and not is_apart)):
                raise ValueError
            text += "*" if left else token.space
            is_exponent = is_exponent and not left and token.kind != "parenthesis"
            operand, left = _operand(token, tokens)
            is_divisor = is_divisor or (is_exponent and left == "bare")  # e^sin x cos x is not clear at all
            text += operand
    return text


def _operand(token: _Token, tokens: list[_Token]) -> tuple[str, str]:
    """The operand that begins with the token, rewritten, and its kind: also bars, root (√(x), ln|x|), bare (sin x)."""
    if token.kind == "parenthesis":
        text = _read(tokens, ")")
        return f"({text}" + (f"{tokens.pop().space})" if tokens else ""), token.kind  # Python reports a missing one
    if token.kind == "bar":
        text = _read(tokens, "|")
        if not tokens or tokens.pop().text == ")" or re.search("[<>=]", text):  # (x < 1) | (x > 2) means or
            raise ValueError
        return f"abs({text})", "bars"
    if token.kind != "function":
        return token.text, token.kind
    name = NAMES.get(token.text, token.text)
    if tokens and tokens[-1].kind in ("parenthesis", "bar"):
        opening = tokens.pop()
        argument, kind = _operand(opening, tokens)
        if kind == "bars":
            return f"{name}({argument})", "root"
        return name + opening.space + argument, "root" if token.text == "√" else token.kind
    factors: list[str] = []
    while tokens and tokens[-1].kind in ("number", "name")[len(factors) > 0 :]:
        factors.append(tokens.pop().text)
        if factors[-1] == "x" or token.text == "√":
            break
    if not factors and name in FUNCTIONS:
        raise ValueError
    return (f"{name}({'*'.join(factors)})", "bare") if factors else (name, token.kind)
