"""ExecuTorch's Inspector: `print_data_tabular()`, and `to_dataframe().to_csv(...)`.

`Method::execute` is the network. Events that hold others (`OPERATOR_CALL`, `DELEGATE_CALL`) are
blocks, so they do not add up with the ops. Loading and initialising is not inference and left out.
"""

import re
from collections.abc import Iterable, Iterator

from latency_models.importers.imported import Imported, Kind, Malformed, Stat
from latency_models.importers.parsing import lines, number, records, scale

_HEADER = ("event_block_name", "event_name", "op_types")
_AVERAGE = re.compile(r"^avg \((\w+)\)$")
_NETWORK, _HOLDING = "Method::execute", ("OPERATOR_CALL", "DELEGATE_CALL")
_BEFORE = ("Method::init", "Method::load", "Program::")


def looks_like(data: bytes) -> bool:
    return all(name.encode() in data.partition(b"is_delegated_op")[0] for name in _HEADER)


def read(data: bytes, place: str) -> list[Imported]:
    """The events of `Execute`. Nothing in the table says how many there are."""
    written = list(enumerate(lines(data, place), 1))
    start = next((i for i, (_, line) in enumerate(written) if "event_block_name" in line), None)
    if start is None:
        raise Malformed(place, f"a header with {', '.join(_HEADER)}")
    split = records if "," in written[start][1] else _table
    (_, header), *body = split(written[start:], place)
    rows = []
    for at, values in body:
        if not any(values):
            continue
        here = f"{place}, line {at}"
        if len(values) != len(header):
            raise Malformed(here, f"{len(header)} columns", values)
        rows.extend(_event(dict(zip(header, values, strict=True)), here))
    if not rows:
        raise Malformed(place, "events of `Execute`")
    return rows


def _table(numbered: Iterable[tuple[int, str]], place: str) -> Iterator[tuple[int, list[str]]]:
    """Cells are two blanks apart or more; rules between lines hold nothing."""
    for at, line in numbered:
        yield at, re.split(r" {2,}", re.sub(r"^[-+=| ]*$", "", line).strip())


def _event(row: dict[str, str], place: str) -> list[Imported]:
    name = row.get("event_name", "")
    if name.startswith(_BEFORE):
        return []
    columns = [(match[1], key) for key in row if (match := _AVERAGE.match(key))]
    if len(columns) != 1:
        raise Malformed(place, "one column `avg (ms)`", sorted(row))
    ((unit, average),) = columns
    factor = scale(unit, f"{place}, column {average!r}")
    kind = Kind.BLOCK if name in _HOLDING else Kind.NETWORK if name == _NETWORK else Kind.OP
    delegated = row.get("is_delegated_op", "")
    if delegated not in ("True", "False"):
        raise Malformed(f"{place}, column 'is_delegated_op'", "True or False", delegated)
    samples = tuple(
        number(value, f"{place}, column 'raw'") * factor
        for value in re.findall(r"[^\s,\[\]]+", row.get("raw", ""))
    )
    known = ((0.1, "p10"), (0.5, "p50"), (0.9, "p90"))
    quantiles = [(p, row.get(f"{column} ({unit})")) for p, column in known]
    stated = {"delegated": delegated, "delegate": row.get("delegate_backend_name", "")}
    median = next((value for p, value in quantiles if p == 0.5 and value), None)
    return [
        Imported(
            name,
            kind,
            number(median or row[average], place) * factor,
            Stat.MEDIAN if median else Stat.MEAN,
            op=", ".join(re.findall(r"'([^']*)'", row.get("op_types", ""))),
            quantiles_ms=tuple((p, number(v, place) * factor) for p, v in quantiles if v),
            samples_ms=samples,
            runs=len(samples) or None,
            stated=tuple(sorted((key, value) for key, value in stated.items() if value)),
            place=place,
        )
    ]
