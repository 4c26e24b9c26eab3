"""Which column of a table of predictions means what: named by the user, or guessed where the name leaves no doubt."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from kmura.errors import InputError
from kmura.evaluation.table_file import TableFile

# role -> names that leave no doubt, in lower case without separators
_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "imageid", "imagename", "imagepath", "file", "filename", "filepath", "path", "filestem"),
    "label": ("label", "labels", "target", "ytrue", "truth", "groundtruth"),
    "probability": ("probability", "prob", "yprob", "yproba", "probabilities"),
    "logit": ("logit", "logits"),
    "patient": ("patient", "patientid", "patientkey", "subject", "subjectid"),
    "study": ("study", "studyid", "studynumber", "studyinstanceuid", "accessionnumber"),
    "split": ("split", "subset", "partition"),
}
ROLES = tuple(_NAMES)
# beginnings of the columns of several classes or labels, as kmura and others write them
_PREFIXES = {
    "label": ("label_", "true_", "target_"),
    "probability": ("probability_", "prob_", "p_"),
    "logit": ("logit_",),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table by what they mean, each a tuple of names; empty where there is none.

    Attributes:
        image, patient, split: at most one column.
        label, probability, logit: one column, or one per class or label.
        study: one or several columns, which identify a study together with the patient.
        guessed: roles whose columns were not named by the user.
        remarks: what could not be guessed.
    """

    image: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    probability: tuple[str, ...] = ()
    logit: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()
    study: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[str, ...]:
        """All columns, each once."""
        return tuple(dict.fromkeys(name for role in ROLES for name in getattr(self, role)))

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each role: `image: the column file_name (guessed from its name)`."""
        lines = []
        for role in ROLES:
            names = getattr(self, role)
            if names:
                what = f"the column {names[0]}" if len(names) == 1 else f"the columns {', '.join(names)}"
                lines.append(f"{role}: {what}{' (guessed from its name)' if role in self.guessed else ''}")
        return (*lines, *self.remarks)


def option_of(role: str) -> str:
    """The option that names the column of a role."""
    return f"--{role}-column"


def columns_of(file: TableFile, named: Mapping[str, Sequence[str]], optional: Iterable[str] = ()) -> Columns:
    """Returns the columns of a file.

    Args:
        file: the table.
        named: role -> columns that the user names.
        optional: roles that the table need not have, beside image, patient, study and split.

    Raises:
        InputError: a named column does not exist or has two roles, or labels, or both probabilities and logits, cannot
            be found.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for role, names in named.items():
        for name in names:
            file.check_column(name, option_of(role))
        if len(names) > 1 and role in ("image", "patient", "split"):
            raise InputError(f"{option_of(role)} is one column, but {', '.join(names)} were given; name one")
        chosen[role] = tuple(names)
    guessed, remarks = [], []
    if chosen.get("probability"):
        chosen.setdefault("logit", ())
    elif chosen.get("logit"):
        chosen.setdefault("probability", ())
    taken = {name for names in chosen.values() for name in names}
    for role in ROLES:
        if chosen.get(role) or role in chosen:
            continue
        candidates = [name for name in file.columns if _plain(name) in _NAMES[role] and name not in taken]
        several = _of_classes(file, role) if not candidates else ()
        if len(candidates) == 1 or several:
            chosen[role] = several or tuple(candidates)
            guessed.append(role)
        elif candidates:
            remarks.append(
                f"{role}: {' and '.join(candidates)} may both be meant, so none is used; name one with "
                f"{option_of(role)}"
            )
    _check_roles(file, chosen, optional)
    return Columns(**chosen, guessed=tuple(guessed), remarks=tuple(remarks))


def _check_roles(file: TableFile, chosen: Mapping[str, tuple[str, ...]], optional: Iterable[str]) -> None:
    known = f"columns: {', '.join(file.columns[:20])}{', ...' if len(file.columns) > 20 else ''}"
    if not chosen.get("label") and "label" not in optional:
        raise InputError(f"{file.path}: which column is the label? name it with --label-column ({known})")
    if not chosen.get("probability") and not chosen.get("logit"):
        raise InputError(
            f"{file.path}: which column is the prediction? name it with --probability-column or --logit-column"
            f"{' (--second-probability-column or --second-logit-column)' if 'label' in optional else ''} ({known})"
        )
    roles: dict[str, str] = {}
    for role in ROLES:
        for name in chosen.get(role, ()):
            if name in roles and {role, roles[name]} - {"image", "patient", "study"}:
                raise InputError(
                    f"the column {name} cannot be both {roles[name]} and {role}; name another with {option_of(role)}"
                )
            roles.setdefault(name, role)


def _of_classes(file: TableFile, role: str) -> tuple[str, ...]:
    """The columns of several classes whose names begin alike; empty if there are fewer than two."""
    for prefix in _PREFIXES.get(role, ()):
        names = tuple(name for name in file.columns if name.lower().startswith(prefix) and len(name) > len(prefix))
        if len(names) > 1:
            return names
    return ()


def class_names(columns: Sequence[str], role: str) -> tuple[str, ...]:
    """The names of classes from those of their columns, without a beginning that all have."""
    for prefix in _PREFIXES[role]:
        if all(name.lower().startswith(prefix) and len(name) > len(prefix) for name in columns):
            return tuple(name[len(prefix) :] for name in columns)
    return tuple(columns)


def is_general(name: str) -> bool:
    """Whether the name of a label column says only that it is the label, not what the label means."""
    return _plain(name) in _NAMES["label"]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
