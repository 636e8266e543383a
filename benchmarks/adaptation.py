"""Sessions to adapt: methods, personas alone and joint, several runs, the paper's figures beside; and the persona nobody trained.

Runs of `python -m claw_train.evaluate suite=adaptation`, all from one warm start. Every run is kept (--runs-in), so that an
interrupted benchmark goes on where it stopped; --for-s ends a turn cleanly after so many seconds.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import arguments, report
from claw_train.adaptation import configs, measure
from claw_train.adaptation_table import Cell, differences, table
from claw_train.view import PlainView

PARTS = {
    "binary": ("binary",),
    "opd": ("opd",),
    "hybrid": ("hybrid",),
    "memory": ("memory",),
    "memory+hybrid": ("memory+hybrid",),
    "grandfather": ("none", "memory", "hybrid", "memory+hybrid"),
}
"""What --only may name. The last is the persona whose words are in no lexicon and no warm start, reported apart."""


def words(part: str, runs: int, folder: Path) -> list[str]:
    """The words of one part's command line."""
    who = "grandfather" if part == "grandfather" else "student,ta,teacher,joint"
    return [f"methods=[{','.join(PARTS[part])}]", f"who=[{who}]", f"runs={runs}", f"out={folder}"]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    parser.add_argument("--runs-in", type=Path, default=Path("runs/adaptation"), help="where the runs are kept")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin no run after so many seconds")
    args = parser.parse_args()
    until = time.monotonic() + args.for_s
    cells: dict[str, list[Cell]] = {}
    for part in PARTS:
        if args.only in (None, part):
            asked = words(part, args.runs, args.runs_in)
            _, cells[part] = asyncio.run(measure(asked, PlainView(), for_s=until - time.monotonic()))
    trained = [part for part in cells if part != "grandfather"]
    found = [c for part in trained for c in cells[part]]
    config, _ = configs([f"methods=[{','.join(trained) or 'none'}]"])
    text = markdown(table(config, found))
    text += "\n\n" + "\n".join(f"- {line}" for line in differences(config, found))
    if "grandfather" in cells:
        apart, _ = configs(words("grandfather", args.runs, args.runs_in))
        text += "\n\nApart, a persona whose words are in no lexicon and no warm start:\n\n"
        text += markdown([[r[0], r[2]] for r in table(apart, cells["grandfather"])])
    report("adaptation", text, {"cells": [asdict(c) for part in cells.values() for c in part]}, args.json)


def markdown(rows: list[list[str]]) -> str:
    """Rows, the first of them headings, as a Markdown table."""
    head, *rest = rows
    return "\n".join("| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rest))


if __name__ == "__main__":
    main()
