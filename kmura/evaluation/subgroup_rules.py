"""Rules that assign images to subgroups: `sex`, `age>=18`, `device==Siemens`."""

import dataclasses
import operator
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from kmura.config.suggestions import did_you_mean, nearest
from kmura.errors import InputError

MOST_GROUPS = 20  # of one column; more are a number or an identifier
NO_VALUE = "(no value)"
_OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_OPPOSITE = {">=": "<", "<": ">=", "<=": ">", ">": "<=", "==": "!=", "!=": "==", "=": "!="}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How images are assigned to subgroups: by the values of a column, or by a condition on it."""

    text: str
    column: str
    sign: str = ""
    value: str = ""

    def of(self, values: pd.Series) -> pd.Series:
        """Returns the subgroup of each image as text.

        Args:
            values: of the column.

        Raises:
            InputError: the column has too many values, or a condition compares text with a number.
        """
        text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
        blank = text.str.lower().isin(("", "nan", "none", "na", "<na>"))
        if not self.sign:
            number = pd.to_numeric(text[~blank], errors="coerce")
            if len(number) and number.notna().all() and (number == number.round()).all():
                text = text.where(blank, number.reindex(text.index).fillna(0).astype("int64").astype(str))  # 1.0 is 1
            groups = text.where(~blank, NO_VALUE)
            if groups.nunique() > MOST_GROUPS:
                raise InputError(
                    f"--by {self.text}: the column has {groups.nunique()} values, at most {MOST_GROUPS} subgroups are "
                    f"compared; give a condition, such as {self.text}{_example(number, text[~blank])}"
                )
            return groups
        number = pd.to_numeric(text, errors="coerce")
        compare = _OPERATORS[self.sign]
        if _is_number(self.value) and number[~blank].notna().all():
            met = compare(number, float(self.value))
        elif self.sign in ("==", "!=", "="):
            met = compare(text, self.value)
        else:
            wrong = text[~blank & number.isna()]
            what = f"is {wrong.iloc[0]!r} in one row" if len(wrong) else "is a number"
            raise InputError(f"--by {self.text}: {self.column} {what}; compare it with == or !=, or a number")
        opposite = f"{self.column}{_OPPOSITE[self.sign]}{self.value}"
        return pd.Series(np.where(blank, NO_VALUE, np.where(met, self.text, opposite)), values.index)


def rules_of(by: Iterable[str]) -> list[Rule]:
    """Returns the rules of texts such as `sex`, `age>=18` or `device==Siemens`.

    Raises:
        InputError: a text is not such a rule, or is given twice.
    """
    rules = []
    for text in by:
        match = re.fullmatch(r"\s*([^<>=!]+?)\s*(?:(>=|<=|==|!=|>|<|=)\s*([^<>=!]+?)\s*)?", text)
        if match is None:
            raise InputError(
                f"--by {text!r} is neither a column nor a condition; write sex, age>=18 or device==Siemens"
            )
        column, sign, value = match.groups(default="")
        rule = Rule(f"{column}{sign}{value}", column, sign, value)
        if rule in rules:
            raise InputError(f"--by {text} is given twice; give it once")
        rules.append(rule)
    return rules


def columns_of_rules(by: Iterable[str], known: Sequence[str], where: str) -> list[str]:
    """Returns the columns of rules, each once.

    Args:
        by: texts of rules.
        known: the columns that there are.
        where: what has these columns, for the message.

    Raises:
        InputError: there is no such column; suggests the nearest.
    """
    columns = list(dict.fromkeys(rule.column for rule in rules_of(by)))
    for name in columns:
        if name not in known:
            names = f"columns: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}" if known else "it has none"
            raise InputError(f"{where} has no column {name!r} for --by{did_you_mean(nearest(name, known))} ({names})")
    return columns


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _example(number: pd.Series, text: pd.Series) -> str:
    """The end of an example of a condition: at the median of numbers, or one of the texts."""
    return f">={number.median():g}" if number.notna().all() else f"=={text.iloc[0]}"
