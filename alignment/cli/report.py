"""``align report``: plain arguments, no configuration."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from alignment.utils.errors import UserError


def run_report(arguments: Sequence[str]) -> int:
    """Writes a report on runs and prints where it is; see ``align report --help``.

    Raises:
        UserError: A folder that is not there.
    """
    parser = argparse.ArgumentParser(prog="align report", add_help=False)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html")
    args = parser.parse_args(list(arguments))
    for path in args.paths:
        if not path.exists():
            raise UserError(f"align report: no folder '{path}'")
    print(importlib.import_module("alignment.report.main").run(args.paths, args.output))
    return 0
