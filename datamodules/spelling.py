"""The names of the language of expression.py, and how people write f(x) otherwise, such as 2x^2 or np.sin(x)."""

import ast
import math
import re
import warnings
from itertools import groupby
from unicodedata import decomposition, normalize

CONSTANTS = {"pi": math.pi, "π": math.pi, "e": math.e}
# functions of one argument, and of several
OF_ONE = "sin cos tan asin acos atan sinh cosh tanh exp log log2 log10 sqrt abs sign floor ceil".split()
OF_ONE += ["relu", "sigmoid", "sinc"]
OF_SEVERAL = "where heaviside min max minimum maximum".split()
# Other functions in terms of the language's. Each argument stands once, or nested calls would grow without bound.
MEANINGS = {
    "ln(a)": "log(a)",
    "lg(a)": "log10(a)",
    "log(a, b)": "log(a)/log(b)",
    "log1p(a)": "log(1 + a)",
    "expm1(a)": "exp(a) - 1",
    "pow(a, b)": "a**b",
    "power(a, b)": "a**b",
    "square(a)": "a**2",
    "arcsin(a)": "asin(a)",
    "arccos(a)": "acos(a)",
    "arctan(a)": "atan(a)",
    "arctg(a)": "atan(a)",
    "sen(a)": "sin(a)",
    "tg(a)": "tan(a)",
    "ctg(a)": "1/tan(a)",
    "cot(a)": "1/tan(a)",
    "sec(a)": "1/cos(a)",
    "csc(a)": "1/sin(a)",
    "fabs(a)": "abs(a)",
    "absolute(a)": "abs(a)",
    "sgn(a)": "sign(a)",
    "ceiling(a)": "ceil(a)",
    "round(a)": "floor(a + 0.5)",
    "mod(a, b)": "a % b",
    "clip(a, b, c)": "min(max(a, b), c)",
    "clamp(a, b, c)": "min(max(a, b), c)",
    "step(a)": "heaviside(a)",
    "logistic(a)": "sigmoid(a)",
    "expit(a)": "sigmoid(a)",
}
SAME = {
    **dict.fromkeys("−–—‒‐‑", "-"),
    **dict.fromkeys("·⋅∙•×✕∗", "*"),
    **dict.fromkeys("÷∕", "/"),
    **dict.fromkeys("“”„‟‘’‚«»`´", "'"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),  # of no width
    **{"√": "sqrt ", "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "↦": "->", "∧": " and ", "∨": " or ", "х": "x"},
}
NAME = r"[^\W\d]\w*"
PREFIXES = [
    rf"def\s+{NAME}\s*\([^()]*\)[^:]*:",
    r"return\b",
    rf"(?:lambda\s+)?(?:{NAME}|\(\s*{NAME}\s*\))\s*(?::(?!=)|->)",  # also x -> ..., (x) -> ..., f: x -> ...
    rf"\(?\s*(?P<name>{NAME})\s*\)?\s*=>(?=.*\b(?P=name)\b)",  # JavaScript; x => 1 would mean >=
    rf"{NAME}\s*\(\s*{NAME}\s*\)\s*:?=(?!=)",  # f(x) = ...
    rf"(?!x\b){NAME}\s*:?=(?!=)",  # y = ...
    rf"@\s*\(\s*{NAME}\s*\)",  # MATLAB
    r"=",  # a spreadsheet
]
RULES = [
    (r"[\s;,=]+$", ""),
    (r"^\s*['\"$]+(.*[^'\"$])['\"$]+$", r"\1"),
    (rf"^(?:{'|'.join(PREFIXES)})\s*", ""),
    (r"\\(?:left|right|quad|[,;:! ])", " "),
    (r"\\[({]", "("),
    (r"\\[)}]", ")"),
    (r"\\[lr]vert(?![a-z])", "|"),
    (r"\\(?:mathrm|operatorname)\s*\{(\w+)\}", r" \1"),
    (r"\blog_\{?(2|10)(?!\d)\}?", r"log\1 "),
    (r"(\(.*\d),(?=\d.*;)", r"\1."),  # where ; is between arguments
    (r"(\(.*;.*\d),(?=\d)", r"\1."),
    (r"(\(.*);", r"\1, "),
    (r"\\(?:cdot|times)(?![a-z])", "*"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\(?![dt]?frac)(?=[a-zA-Z])", " "),
    (r"(?<!frac)(?<!\})\{([^{},]*)\}", r"(\1)"),
    (r"(?<!\bx)(?<!\))\[([^\[\],]*)\](?![{(])", r"(\1)"),
    (r"\b(?:np|numpy|math|Math|torch|nn|functional|F|tf|jnp|scipy|special|sp|sympy)\s*\.\s*(?=[a-zA-Z])", ""),
    (r"\|([^|<>=]*[^|<>=\s+*/^(-])\s*\|", r"abs(\1)"),
    (r"⌊([^⌊⌋]*)⌋", r"floor(\1)"),
    (r"⌈([^⌈⌉]*)⌉", r"ceil(\1)"),
    (r"\.(?=[*/^])", ""),  # MATLAB's x.^2
    (r"~=", "!="),
    (r"[~!]\s*(?=\()", " not "),
    (r"(?i)\bpi\s*\(\s*\)", "pi"),
    (r"\bxe\s*(?=\^|\*\*)", "x e"),
    (r"(?i)\bif\s*(?=\((?!.*\belse\b).*,.*,)", "where"),  # a spreadsheet's
    (r"&&?", " and "),
    (r"\|\|?", " or "),
    (r"<>", "!="),
    (r"^([^?:]*)\?([^?:]*):([^?:]*)$", r"\2 if \1 else \3"),
    (r"\^", "**"),
    (r"(\b(?:if|where)\b[^=]*[^=<>!:])=(?!=)", r"\1=="),
]
WORDS = "if else and or not in is for lambda".split()
TOKEN = re.compile(
    rf"\s*(?:\*\*|//|[<>=!]=|[-+*/%<>,]|\b(?:{'|'.join(WORDS)})\b)\s*"  # an operator and the blanks around it
    rf"|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?|{NAME}|\S"
)
VALUES = {"x", *CONSTANTS}
SEVERAL = {*OF_SEVERAL, *(key.partition("(")[0] for key in MEANINGS if "," in key)}
FUNCTIONS = {*OF_ONE, *OF_SEVERAL, *(key.partition("(")[0] for key in MEANINGS)}
RENAMED = {key[:-3]: text[:-3] for key, text in MEANINGS.items() if re.fullmatch(r"\w+\(a\)", text)}
PIECE = re.compile("|".join([*sorted(FUNCTIONS, key=len, reverse=True), "pi", "π", "x", r"\d+"]))


def corrected(text: str) -> str:
    """The text in the language of expression.py; what it has that is not in it stays as it is.

    Raises:
        SyntaxError: it is no expression.
        ValueError: it can be read in two ways; the message says where.
    """
    text = _ordinary_characters(text)
    if len(text) > 2000:  # one character may stand for 18
        raise SyntaxError
    for pattern, replacement in RULES * 2:  # a rule may make way for an earlier one
        while (again := re.sub(pattern, replacement, text)) != text:
            text = again
    if "\n" in text:  # two lines are no product
        raise SyntaxError
    tokens = [_evenly_spaced(token) for token in TOKEN.findall(text)]
    tokens = [RENAMED.get(token, token) for token in _with_points(_with_names(tokens))]
    text = "".join(_with_products(_with_arguments(tokens))).strip()
    text = re.sub(r"(?<![\w)])\((\w+)\)(?![\w.(])", r"\1", re.sub(r"\(\s+", "(", text))  # such as **(2)
    text = re.sub(r"\*\*\((-\w+)\)(?!\s*\*\*)", r"**\1", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's advice on odd literals
        tree = ast.parse(text, mode="eval")
    as_it_is = ast.unparse(tree)
    meaning = ast.unparse(_Meanings().visit(tree))
    return text if meaning == as_it_is else meaning.replace(" ** ", "**")


def _ordinary_characters(text: str) -> str:
    text = re.sub(r"(?<![\d.,])[¼-¾⅐-⅞]", lambda match: f"({normalize('NFKC', match[0])})".replace("⁄", "/"), text)
    parts = []
    for is_superscript, group in groupby(text, lambda c: decomposition(c).startswith("<super>")):
        part = normalize("NFKC", "".join(group))
        parts.append(f"**({part})" if is_superscript else part)
    return re.sub("[" + "".join(SAME) + "]", lambda match: SAME[match[0]], "".join(parts))


def _evenly_spaced(token: str) -> str:
    """An operator with a blank on both sides or none."""
    bare = token.strip()
    if bare in WORDS or (token[0].isspace() and token[-1].isspace()):
        return f" {bare} "
    return f"{bare} " if bare == "," and token[-1].isspace() else bare


def _with_names(tokens: list[str]) -> list[str]:
    """Sin as sin, sinx as sin x, and t as x where it is the only variable."""
    named: list[str] = []
    for token in tokens:
        pieces = PIECE.findall(token)
        if token.lower() in FUNCTIONS | VALUES:
            pieces = [token.lower()]
        elif not token.isidentifier() or "".join(pieces) != token:
            pieces = [token]
        named += pieces
    others = {
        token
        for token, following in zip(named, [*named[1:], ""], strict=False)
        if token.isidentifier() and token not in FUNCTIONS | VALUES and following != "("
    }
    if len(others) == 1 and "x" not in named and len(min(others)) == 1 and not others & {*"ijIJ"}:
        return ["x" if token in others else token for token in named]
    return named


def _with_points(tokens: list[str]) -> list[str]:
    """0,5 as 0.5, outside of the functions that take several arguments."""
    done: list[str] = []
    called: list[str] = []  # what stands before each open bracket
    while tokens:
        token, *tokens = tokens
        if token == "(":
            called.append(done[-1] if done else "")
        elif token == ")" and called:
            called.pop()
        if (
            token == ","
            and re.match(r"\d+,\d+(e|$)", "".join([*done[-1:], ",", *tokens[:1]]), re.I)
            and (not {*called[-1:]} & SEVERAL - {"log"})
        ):
            whole, part = done.pop(), tokens.pop(0)
            if called[-1:] == ["log"]:
                raise ValueError(f"the comma in {whole},{part}: write {whole}.{part}, or a blank before a base")
            if (len(part) == 3 and part.isdecimal() and whole != "0") or tokens[:1] == [","]:
                raise ValueError(f"the comma in {whole},{part}: a decimal point is '.', and thousands have none")
            token = f"{whole}.{part}"
        done.append(token)
    return done


def _with_arguments(tokens: list[str]) -> list[str]:
    """sin x as sin(x), and sin**2(x) as sin(x)**2."""
    done: list[str] = []
    while tokens:
        token, tokens = tokens[0], tokens[1:]
        done.append(token)
        if token not in FUNCTIONS - {*OF_SEVERAL} or tokens[:1] == ["("]:
            continue
        exponent = r"\*\*(\d+|-1|\(\d+\)|\(-1\))"
        n = next((n for n in range(2, 6) if re.fullmatch(exponent, "".join(map(str.strip, tokens[:n])))), 0)
        power, tokens = "".join(tokens[:n]).strip("*() "), tokens[n:]
        if tokens[:1] != ["("]:
            n = _bare_argument(token, tokens)
            tokens = ["(", *tokens[:n], ")", *tokens[n:]]
        end = _closing(tokens) + 1
        if power == "-1":
            done[-1] = f"arc{token}"
        elif power and "".join(tokens[end : end + 1]).strip() == "**":
            raise ValueError(f"write the power of {token} behind its argument, as in {token}(x)**2")
        elif power:
            tokens[end:end] = ["**", "(", power, ")"]
    return done


def _bare_argument(function: str, tokens: list[str]) -> int:
    """How many tokens are the argument of a function that has no parentheses: x, -x, 2x."""
    if tokens[1:2] == ["("] and tokens[0].isdecimal():
        raise ValueError(f"{function}{tokens[0]} is unknown: write {function} of what is meant")
    n = first = int("".join(tokens[:1]).strip() == "-")
    if tokens[n : n + 2] == ["abs", "("]:  # from bars, as in ln|x|
        n += 2 + _closing(tokens[n + 1 :])
    most = first + 1 if function == "sqrt" else len(tokens)
    while n < min(most, len(tokens)) and (tokens[n] in VALUES or (n == first and tokens[n][0].isdecimal())):
        n += 1
    following = [token.strip() for token in tokens[n : n + 2]]
    is_clear = not following or following[0] in {"+", "-", ")", ",", *"<>", "<=", ">=", "==", "!=", *WORDS, *FUNCTIONS}
    is_clear |= following[:1] in (["*"], ["/"]) and following[-1] in FUNCTIONS
    if n == first or not is_clear:
        raise ValueError(f"write the argument of {function} in parentheses, as in {function}(x)")
    return n


def _with_products(tokens: list[str]) -> list[str]:
    """2x as 2*x."""
    done: list[str] = []
    for token in tokens:
        left = done[-1] if done else ""
        is_factor = left in VALUES or left == ")" or re.match(r"\.?\d", left)
        if is_factor and (token.isidentifier() or token == "(") and (left, token) != ("e", "("):
            if _may_go_on(done, token):
                raise ValueError("it can be read in two ways: write each * and parentheses, as in 1/(2*x), e**(2*x)")
            done.append("*")
        elif re.match(r"[\w.]{2}", left[-1:] + token[0]):
            done.append(" ")
        done.append(token)
    return done


def _may_go_on(tokens: list[str], factor: str) -> bool:
    """Whether the factor after these might be meant as a part of a denominator or an exponent: 1/2, e**2."""
    bare = [token.strip() for token in tokens]
    end = len(bare)
    while True:
        start = _opening(bare, end - 1)
        is_number = bare[start][0].isdecimal()
        start -= bare[start - 1] in ("+", "-") and bare[max(0, start - 2)] == "**"
        if start < 2 or bare[start - 1] != "**":
            return start > 0 and bare[start - 1] in ("/", "//", "%")
        base = bare[start - 2]
        if is_number and (base not in ("x", ")") or factor == "x"):
            return True
        end = start - 1


def _opening(tokens: list[str], end: int) -> int:
    """Where the number, name, group or call begins that ends there."""
    start = end - _closing(tokens[end::-1])
    return start - (tokens[start] == "(" and start > 0 and tokens[start - 1].isidentifier())


def _closing(tokens: list[str]) -> int:
    """Where the bracket closes that is the first token, or the last one; of tokens in reverse, where it opens."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            return i
    return len(tokens) - 1


class _Meanings(ast.NodeTransformer):
    """Calls of other functions, and of methods such as x.abs(), by MEANINGS."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            node = ast.Call(ast.Name(node.func.attr), [node.func.value, *node.args], node.keywords)
        parameters = "abc"[: len(node.args)]
        meaning = MEANINGS.get(f"{ast.unparse(node.func)}({', '.join(parameters)})")
        if meaning is None or node.keywords or len(node.args) > len(parameters):
            return node
        arguments = dict(zip(parameters, map(ast.unparse, node.args), strict=False))
        text = re.sub(r"\b[abc]\b", lambda match: f"({arguments[match[0]]})", meaning)
        return ast.parse(text, mode="eval").body
