"""Committed results as README's tables and as plots.

python -m benchmarks.report                 writes the tables into README.md, and a plot beside each result it shows
python -m benchmarks.report --check         exits 1 if README.md does not have the tables of the committed results
python -m benchmarks.report --compare A B   how the times of folder B differ from A's; exits 1 if one is slower
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import accuracy, ranks
from benchmarks.baselines import BASELINES
from benchmarks.compare import MARGIN, changes
from benchmarks.environment import RESULTS, ROOT
from benchmarks.plots import plot
from benchmarks.results import Key, Results, device_of, latest
from benchmarks.workloads import WORKLOADS

BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"
TABLE = {"moment_matching": "both", "class_complexity": "both"}  # the fused losses: README has no room for all
SHOWN = {"class_moments": "forward"} | TABLE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"))
    options = parser.parse_args(arguments)
    if options.compare:
        return compare(*map(Results, options.compare))
    return update(ROOT / "README.md", RESULTS, check=options.check)


def update(readme: Path, root: Path, check: bool) -> int:
    before = readme.read_text()
    after = before
    for name, made in TABLES.items():
        after = with_table(after, name, "\n".join(made(root, readme.parent)))
    if check:
        if before == after:
            return 0
        print(f"{readme.name} does not show the committed results: run python -m benchmarks.report", file=sys.stderr)
        return 1
    readme.write_text(after)
    for result in latest(root, _is_operator):
        plot(result, SHOWN, result.folder / "operators.png")
    return 0


def compare(before: Results, after: Results) -> int:
    try:
        found = sorted(changes(before, after), key=lambda change: -change.ratio.value)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print("time after / time before, in units of eager PyTorch (99 % interval)")
    for change in found:
        print(change)
    slower = sum(change.slower for change in found)
    print(f"{slower} of {len(found)} are slower: their interval lies above {1 + MARGIN:.2f}")
    return int(slower > 0)


def with_table(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of that name."""
    first, last = BEGIN.format(name), END.format(name)
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"README.md must have the lines {first} and {last}")
    return f"{head}{first}\n{table}\n{last}{tail}"


def _is_operator(key: Key) -> bool:
    return key[0] != "iteration"


def table(root: Path, readme: Path) -> Iterator[str]:
    """Of the results below `root`, with links from the folder `readme`."""
    results = latest(root, _is_operator)
    if not results:
        yield "No results are committed yet."
    for result in results:
        folder = result.folder.relative_to(readme)
        yield f"{_origin(result.environment)} ([results]({folder}),"
        yield f"[plot]({folder}/operators.png)):"
        yield ""
        yield "| operator | workload | backend | time | " + " | ".join(BASELINES) + " | of the floor | peak memory |"
        yield "|---|---|---|" + "--:|" * (len(BASELINES) + 3)
        for operator, direction in TABLE.items():
            yield from filter(None, (_row(result, operator, workload, direction) for workload in WORKLOADS))
        yield ""
    for result in latest(root, lambda key: not _is_operator(key)):
        yield f"{_origin(result.environment)} ([results]({result.folder.relative_to(readme)})):"
        yield ""
        yield from _iterations(result)
    for file, record in _newest(root, "ranks.json").items():
        yield f"{_origin(record['environment'])} ([results]({file.parent.relative_to(readme)})):"
        yield ""
        yield from _ranks(record)


def accuracies(root: Path, readme: Path) -> Iterator[str]:
    """Each comparison of methods below `root`, the newest of its name and machine."""
    found = {folder: accuracy.results(folder)[-1].environment for folder in root.glob("*/*/accuracy-*")}
    every = sorted(found, key=lambda folder: found[folder]["time"])
    newest = {(folder.parts[-3], folder.name): folder for folder in every}
    for _, folder in sorted(newest.items()):
        origin, link = _origin(found[folder]), folder.relative_to(readme)
        yield f"{accuracy.conditions(folder)}; {origin} ([results]({link}), [curves]({link}/accuracy.png)):"
        yield ""
        yield from accuracy.table(folder)
        yield ""


def _newest(root: Path, name: str) -> dict[Path, dict[str, Any]]:
    """The newest file of that name of each machine, with what it holds."""
    found = {file: json.loads(file.read_text()) for file in root.glob(f"*/*/{name}")}
    every = sorted(found, key=lambda file: found[file]["environment"]["time"])
    newest = {file.parent.parent.name: file for file in every}
    return {newest[machine]: found[newest[machine]] for machine in sorted(newest)}


def _origin(here: dict[str, Any]) -> str:
    return f"{device_of(here)}, PyTorch {here['versions']['torch']}, commit {here['commit']}"


def _row(result: Results, operator: str, workload: str, direction: str) -> str | None:
    ours = result.ours((operator, workload, direction))
    if ours is None:
        return None
    against = (ours["times_as_fast_as"].get(name) for name in BASELINES)
    cells = (
        operator,
        result.scaled(workload),
        ours["contender"],
        _seconds(ours["median_s"]["value"]),
        *("–" if r is None else f"{r['value']:.2f}× ({r['low']:.2f}–{r['high']:.2f})" for r in against),
        f"{100 * ours['fraction_of_floor']:.0f} %",
        f"{ours['peak_bytes'] / 2**20:.1f} MiB",
    )
    return f"| {' | '.join(cells)} |"


def _iterations(result: Results) -> Iterator[str]:
    """Whole iterations against the published loop's."""
    found = {key[1]: of for key, of in result.groups.items() if not _is_operator(key)}
    yield "| whole iteration | precision | time | published loop | peak memory | published loop's |"
    yield "|---|---|--:|--:|--:|--:|"
    for workload, contenders in found.items():
        published = contenders["published"]
        for precision in sorted(contenders.keys() - {"published"}, reverse=True):
            ours = contenders[precision]
            against = ours["times_as_fast_as"]["published"]
            cells = (
                workload,
                precision,
                _seconds(ours["median_s"]["value"]),
                f"{against['value']:.2f}× ({against['low']:.2f}–{against['high']:.2f})",
                *(f"{of['peak_bytes'] / 2**20:.0f} MiB" for of in (ours, published)),
            )
            yield f"| {' | '.join(cells)} |"
    yield ""


def _ranks(record: dict[str, Any]) -> Iterator[str]:
    """Several processes against one, and what they send."""
    yield f"| {' | '.join(ranks.COLUMNS)} |"
    yield "|---|--:|" + "--:|" * (len(ranks.COLUMNS) - 2)
    for row in record["rows"]:
        yield f"| {' | '.join(ranks.cells(row))} |"
    yield ""


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


TABLES = {"operators": table, "accuracy": accuracies}

if __name__ == "__main__":
    sys.exit(main())
