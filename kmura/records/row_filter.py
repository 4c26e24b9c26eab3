"""The filter of `--where`: a condition on the columns of a table, in pandas' query language and nothing beyond it.

pandas evaluates the condition. It is checked before: only names of columns, literals, comparisons, `and`, `or`, `not`,
arithmetic and the harmless methods of METHODS may occur, so that a condition cannot call other code.
"""

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Iterable

import pandas as pd

from kmura.errors import InputError, in_brief

METHODS = (
    "str", "contains", "startswith", "endswith", "fullmatch", "match", "lower", "upper", "strip", "len",
    "isin", "isna", "isnull", "notna", "notnull", "between",
)  # fmt: skip
_OF_NUMBERS = ("between",)
_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Invert, ast.Compare, ast.cmpop,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.Name, ast.Load, ast.Constant, ast.List,
    ast.Tuple, ast.Attribute, ast.Call, ast.keyword,
)  # fmt: skip
_EXAMPLE = """write for example --where 'modality == "X-ray" and age >= 18'"""


class RowFilter:
    """A condition on the rows of a table.

    Attributes:
        text: the condition as it was given.
        columns: the columns that it names.
    """

    def __init__(self, text: str):
        """
        Raises:
            InputError: the text is no condition, or uses more than columns and literals.
        """
        self.text = text
        self._names: dict[str, str] = {}  # name in the expression -> column
        try:
            self._expression = self._with_plain_names(text)
            tree = ast.parse(self._expression, mode="eval")
        except (SyntaxError, tokenize.TokenError, IndentationError, ValueError) as error:
            raise InputError(f"--where {text!r} is no condition ({in_brief(error)}); {_EXAMPLE}") from error
        for node in ast.walk(tree):
            self._check(node)
        self._numeric = _compared_with_numbers(tree)
        self.columns = tuple(dict.fromkeys(self._names.values()))

    def check_columns(self, columns: Iterable[str], where: str) -> None:
        """Checks that the columns exist.

        Raises:
            InputError: one does not; the message has the nearest names.
        """
        known = list(columns)
        for name in self.columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3)
                hint = (
                    f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(known[:20])}"
                )
                raise InputError(f"--where names {name!r}, which is no column of {where}; {hint}")

    def mask(self, block: pd.DataFrame) -> pd.Series:
        """Which rows fulfil the condition, bool [rows]; a missing value fulfils no comparison except `!=`.

        Args:
            block: rows as text, "" for missing values.

        Raises:
            InputError: a cell is compared with a number and is none, or the condition is not true or false.
        """
        frame = {}
        for name, column in self._names.items():
            cells = block[column].str.strip()
            frame[name] = cells.where(cells != "")
            if name in self._numeric:
                frame[name] = pd.to_numeric(cells.where(cells != ""), errors="coerce")
                wrong = frame[name].isna() & (cells != "")
                if wrong.any():
                    row = wrong.index[wrong][0]
                    raise InputError(
                        f"--where {self.text!r} compares {column!r} with a number, but row {row} has {cells[row]!r}; "
                        "compare it with text in quotes"
                    )
        try:
            result = pd.DataFrame(frame, block.index).eval(self._expression, engine="python", parser="pandas")
        except Exception as error:  # whatever pandas raises for types that do not fit
            raise InputError(f"--where {self.text!r} cannot be evaluated ({in_brief(error)}); {_EXAMPLE}") from error
        if not isinstance(result, pd.Series):
            raise InputError(f"--where {self.text!r} is no condition on columns; {_EXAMPLE}")
        result = result.astype(object).where(result.notna(), False)
        if not result.isin([True, False]).all():
            raise InputError(f"--where {self.text!r} is neither true nor false in row {result.index[0]}; {_EXAMPLE}")
        return result.astype(bool)

    def _with_plain_names(self, text: str) -> str:
        """The condition with `&`, `|` as words and every column (also in backticks) under a plain name."""
        pieces = re.split(r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`[^`]*`)", text.strip())
        marked = "".join(self._named(piece[1:-1]) if piece.startswith("`") else piece for piece in pieces)
        words, after_dot = [], False
        tokens = list(tokenize.generate_tokens(io.StringIO(marked).readline))
        for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
            kind, word = token.type, token.string
            if kind == tokenize.OP and word in ("&", "|"):
                kind, word = tokenize.NAME, {"&": "and", "|": "or"}[word]
            elif kind == tokenize.NAME and word not in {*_WORDS, *self._names} and not after_dot:
                word = word if following.string == "=" else self._named(word)  # the name of an argument stays
            after_dot = word == "."
            words.append((kind, word))
        return " ".join(tokenize.untokenize(words).split("\n")).strip()

    def _named(self, column: str) -> str:
        for name, other in self._names.items():
            if other == column:
                return name
        name = f"column_{len(self._names)}"
        self._names[name] = column
        return name

    def _check(self, node: ast.AST) -> None:
        wrong = ""
        if not isinstance(node, _NODES):
            wrong = type(node).__name__
        elif isinstance(node, ast.Attribute) and node.attr not in METHODS:
            wrong = f".{node.attr}"
        elif isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            wrong = "a call of a function"
        elif isinstance(node, ast.Name) and node.id not in self._names:
            wrong = node.id
        if wrong:
            raise InputError(
                f"--where {self.text!r} uses {wrong}; columns, values in quotes, numbers, comparisons, and, or, not, "
                f"in and the methods {', '.join(METHODS)} are allowed"
            )


_WORDS = {"and", "or", "not", "in", "True", "False", "None", "is"}


def _compared_with_numbers(tree: ast.AST) -> set[str]:
    """The names that the condition compares with numbers, or with lists of numbers."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _OF_NUMBERS:
            sides = [node.func.value, *node.args]
        else:
            continue
        if any(_is_number(side) for side in sides):
            names |= {part.id for side in sides for part in ast.walk(side) if isinstance(part, ast.Name)
                      and not _is_length(side)}  # fmt: skip
    return names


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    if isinstance(node, ast.List | ast.Tuple):
        return bool(node.elts) and all(map(_is_number, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def _is_length(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "len"
