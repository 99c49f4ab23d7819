"""The usual other ways to write f(x), such as 2x^2, |x| or np.sin(x), rewritten in the language of expression.py."""

import re
from contextlib import suppress

import torch

from datamodules.expression import evaluate, shown

PREFIX = re.compile(r"(?:[fghy]\s*(?:\(\s*x\s*\)\s*)?=(?!=)\s*)?(?:lambda\s+x\s*:(?!=))?")  # y = ..., lambda x: ...
CHARACTERS = str.maketrans({"^": "**", "−": "-", "·": "*", "⋅": "*", "×": "*", "÷": "/"})
SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
NAMES = {"√": "sqrt", "ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "absolute": "abs"}
NUMBER = r"(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?"
TOKEN = re.compile(
    rf"""(?asx) (?P<space>[ \t]*) (?:
        (?P<number>{NUMBER}) | (?P<superscript>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+) | (?P<operator>\*\*|[<>=!]=|(?:if|else)\b) |
        (?:(?:np|numpy|math|torch)\.)? (?:
            (?P<name>π|(?:x|pi|e)\b) |
            (?:(?P<called>√|[A-Za-z_]\w*)[ \t]*)? (?P<opening>[(|]) |
            √[ \t]*(?P<radicand>{NUMBER}|π|x\b) |
            (?P<bare>[A-Za-z_]\w*)[ \t]+(?P<argument>(?:{NUMBER}[ \t]*)?(?:(?:π|pi)[ \t]*)?x\b|{NUMBER})
        ) | (?P<other>[A-Za-z_]\w*|.))"""
)
NO_POWER = ("root", "bare", "superscript")  # kinds of operands behind which a power is not clear: √x^2, sin x^2, x²^3


def standard(text: str) -> str:
    """The expression that the text stands for, in the language of ``evaluate``; one in it already is only stripped.

    Raises ValueError where the text cannot be read, or can be read in two ways, as ``1/2x`` or ``sin x^2``.
    """
    expression = PREFIX.sub("", text.strip(), count=1).strip()
    no_points = torch.empty(0, dtype=torch.float64)
    with suppress(ValueError):
        evaluate(expression, no_points)
        return expression
    try:
        rewritten = _rewritten(expression.translate(CHARACTERS))
    except (ValueError, IndexError):
        words = "is not clear: write each * and all parentheses, as in 1/(2*x), e**(2*x), sin(x**2), abs(x)"
        raise ValueError(f"the function {shown(expression)} {words}") from None
    evaluate(rewritten, no_points)
    return rewritten


def _rewritten(text: str) -> str:
    """Raises ValueError or IndexError where the text is not clear."""
    result = ""
    left = ""  # the kind of the operand that the result ends with, see _operand; empty behind an operator
    operator = ""  # the one before that operand
    brackets: list[tuple[str, str, str, str]] = []  # of each open one its token, closing text, kind, operator before it
    for match in TOKEN.finditer(text):
        kind = str(match.lastgroup)
        space, token, function = match["space"], match[kind], match["called"] or match["bare"] or ""
        if token == ")" or (token == "|" and left and not function and brackets and brackets[-1][0] == "|"):
            opening, closing, left, operator = brackets.pop()
            if opening + token not in ("()", "||"):
                raise ValueError
            result += space + closing
        elif kind == "superscript":
            if left in NO_POWER:
                raise ValueError
            result, left = f"{result}{space}**{token.translate(SUPERSCRIPTS)}", kind
        elif kind in ("operator", "other"):
            is_unclear = left in NO_POWER if token == "**" else left == "bare" and token in "*/"
            if is_unclear or (token[0] in "<>=!" and "|" in [opening for opening, *_ in brackets]):  # (x < 1) | (x > 2)
                raise ValueError
            if left and (operator, token) != ("/", "**"):  # else it is a sign, or in a divisor
                operator = token
            result, left = result + space + token, ""
        else:
            if left:  # a product without its *: 1/2x and e^2x are unclear; x^2 sin(x) and sin x cos x are not
                doubts = (left in ("root", "bare", "bars"), operator == "**", not (function and space))
                if kind == "number" or operator == "/" or sum(doubts) > 1:
                    raise ValueError
                operator = "*"
            rewritten, kind, closing = _operand(kind, token, function)
            result, left = result + ("*" if left else space) + rewritten, kind
            if closing:
                brackets.append((token, closing, kind, operator))
                left = operator = ""
    if brackets:
        raise ValueError
    return result


def _operand(kind: str, token: str, function: str) -> tuple[str, str, str]:
    """The operand that begins with the token, rewritten, its kind, and what closes it where it is a bracket."""
    name = NAMES.get(function, function)
    match kind, token:
        case "opening", "(":
            return f"{name}(", "root" if function == "√" else kind, ")"
        case "opening", "|":
            return (f"{name}(abs(", "root", "))") if name else ("abs(", "bars", ")")
        case "argument", _:
            return f"{name}({_rewritten(token)})", "bare", ""
        case "radicand", _:
            return f"sqrt({token})", "bare", ""
    return token, kind, ""
