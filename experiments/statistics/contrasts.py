"""Contrasts: which configurations are compared with which, planned as text or all pairs.

    exact-dense@os8            exact minus dense at output stride 8: the mean over all else that both come with
    exact+os8-os32             output stride 8 under the exact rule minus output stride 32
    Unet-FPN@step300,os16,os8  Unet minus FPN after 300 steps, at output strides 16 and 8

Grammar: A-B, or A-B@CONDITION,CONDITION. A and B are terms joined by "+", all of which hold; conditions are terms too,
and those of one field are alternatives. A term is field=value, or a value alone where it occurs in one field only.
Values are written as in the names of runs: os8 for output_stride, w8 for window, step300 for step (there field=8 does
as well), "own" where a field has none. Names may hold "-": the text is cut where both sides are known.

A configuration of A is matched with the one of B that is equal in every field that neither names. The contrast is the
mean over the matched pairs of A minus B; what has no partner is left out, and the note says so. Differences of
differences (interactions) have no text here; Contrast takes any weights.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

Fields = Mapping[str, object]
PREFIXES = {"output_stride": "os", "window": "w", "step": "step"}
OWN = "own"


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of configurations' scores; weights by label sum to zero. note: what the reader must know of it."""

    name: str
    weights: Mapping[str, float]
    note: str = ""


def pairs(labels: Sequence[str]) -> list[Contrast]:
    """Every configuration minus every later one: an exploration, which has little power."""
    return [Contrast(f"{a} - {b}", {a: 1.0, b: -1.0}) for a, b in combinations(labels, 2)]


def read_contrasts(given: Sequence[str]) -> list[str]:
    """The texts of --contrasts: each is one, or a file with one per line, where # starts a comment (UTF-8).

    Raises:
        ValueError: a file that is not UTF-8, or a text that comes twice.
    """
    texts: list[str] = []
    for text in given:
        if not os.path.isfile(text):
            texts.append(text.strip())
            continue
        try:
            lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--contrasts {text}: the file must be UTF-8 ({error})") from error
        texts += [content for line in lines if (content := line.split("#")[0].strip())]
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        raise ValueError(f"--contrasts: each may be given once, got {', '.join(repeated)} more than once")
    return texts


def planned(
    text: str, configurations: Sequence[tuple[str, Fields]], steps: Sequence[tuple[str, Fields]] = ()
) -> Contrast:
    """The contrast that a text means among configurations, each a label and its fields (those of a run, but its seed).

    steps: the same after several steps of training. They are compared only where a text names a step, and are no
    partners elsewhere.

    Raises:
        ValueError: what does not fit the grammar, names no configuration or could be read in two ways; the message
            lists the choices.
    """
    try:
        return _Reader(text, _table(configurations)).contrast()
    except ValueError:  # no field step is in this table
        if not steps or "step" not in text:
            raise
        return _Reader(text, _table([*configurations, *steps])).contrast()


def _table(configurations: Sequence[tuple[str, Fields]]) -> dict[str, dict[str, str]]:
    """Label -> field -> value."""
    names = list(dict.fromkeys(name for _, fields in configurations for name in fields))
    table = {label: {name: _text(name, fields.get(name)) for name in names} for label, fields in configurations}
    if len(table) < len(configurations):
        raise ValueError(f"labels of configurations must differ, got {', '.join(label for label, _ in configurations)}")
    return table


def _text(field: str, value: object) -> str:
    return OWN if value is None else f"{PREFIXES.get(field, '')}{value}"


Term = tuple[str, str]  # field and value


@dataclass(frozen=True)
class _Reader:
    """Reads one text. table: label -> field -> value."""

    text: str
    table: Mapping[str, Mapping[str, str]]

    def contrast(self) -> Contrast:
        body, at, tail = self.text.partition("@")
        first, second = map(self._side, self._cut(body))
        conditions: dict[str, set[str]] = {}
        for field, value in map(self._term, tail.split(",") if at else []):
            conditions.setdefault(field, set()).add(value)
        named = first.keys() | second.keys()
        rows = {k: row for k, row in self.table.items() if all(row[f] in values for f, values in conditions.items())}
        one, other = (self._contexts(rows, side, named) for side in (first, second))
        shared = [context for context in one if context in other]
        if not shared:
            lists = " and ".join(", ".join(side.values()) for side in (one, other))
            raise self._error(f"no two configurations are alike in all that it does not name, among {lists}")
        if twice := [one[context] for context in shared if one[context] == other[context]]:
            raise self._error(f"both sides are {twice[0]}; let them name the same fields")
        weights = {one[context]: 1 / len(shared) for context in shared}
        weights |= {other[context]: -1 / len(shared) for context in shared}
        alone = [side[context] for side in (one, other) for context in side if context not in shared]
        note = f"mean over {len(shared)} pairs" if len(shared) > 1 else "one pair"
        return Contrast(self.text, weights, f"{note}; without a partner: {', '.join(alone)}" if alone else note)

    def _contexts(
        self, rows: Mapping[str, Mapping[str, str]], side: Mapping[str, str], named: set[str]
    ) -> dict[tuple[str, ...], str]:
        """Labels of a side's configurations by their values in the fields that no side names."""
        found: dict[tuple[str, ...], str] = {}
        for label, row in rows.items():
            if side.items() <= row.items():
                other = found.setdefault(tuple(value for field, value in row.items() if field not in named), label)
                if other != label:
                    differ = ", ".join(field for field, value in row.items() if value != self.table[other][field])
                    raise self._error(f"{'+'.join(side.values())} may be {other} or {label}; let it name {differ} too")
        if not found:
            there = ", ".join(self.table) or "none"
            raise self._error(f"no configuration has {', '.join(side.values())} there; there are {there}")
        return found

    def _cut(self, body: str) -> tuple[str, str]:
        """The sides of the one "-" that has known terms on both."""
        cuts = [(body[:i], body[i + 1 :]) for i, character in enumerate(body) if character == "-"]
        if not cuts:
            raise self._error("must be A-B or A-B@CONDITION,CONDITION")
        known = [cut for cut in cuts if all(self._found(term) for side in cut for term in side.split("+"))]
        if len(known) > 1:
            raise self._error(f"may be cut as {' or as '.join(' minus '.join(cut) for cut in known)}")
        return known[0] if known else cuts[0]

    def _side(self, part: str) -> dict[str, str]:
        terms = [self._term(term) for term in part.split("+")]
        if len({field for field, _ in terms}) < len(terms):
            raise self._error(f"{part.strip()} names a field twice")
        return dict(terms)

    def _term(self, text: str) -> Term:
        found = self._found(text)
        if not found:
            there = "; ".join(f"{field}: {', '.join(values)}" for field, values in self._choices.items())
            raise self._error(f"'{text.strip()}' is no value; there are {there}")
        if len(found) > 1:
            raise self._error(f"{text.strip()} may be {' or '.join('='.join(term) for term in found)}")
        return found[0]

    def _found(self, text: str) -> list[Term]:
        """The fields and values that a term may mean."""
        field, equals, value = (part.strip() for part in text.partition("="))
        if equals:
            return [(field, one) for one in self._choices.get(field, ()) if one in (value, _text(field, value))]
        return [(name, one) for name, values in self._choices.items() for one in values if one == field]

    @cached_property
    def _choices(self) -> dict[str, list[str]]:
        rows = list(self.table.values())
        return {field: list(dict.fromkeys(row[field] for row in rows)) for field in (rows[0] if rows else ())}

    def _error(self, message: str) -> ValueError:
        return ValueError(f"--contrasts {self.text}: {message}")
