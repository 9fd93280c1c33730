"""``align cache``: plain arguments, no configuration."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.config.paths import conf_dir
from alignment.utils.errors import ConfigError, UserError, nearest

if TYPE_CHECKING:
    from alignment.pipeline.cache import Entry, Selection

ACTIONS = ("list", "prune")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>[mhdw])")


def run_cache(arguments: Sequence[str]) -> int:
    """Lists or prunes the cache; see ``align cache --help``.

    Returns:
        The exit code.

    Raises:
        UserError: An argument that names nothing.
    """
    args = parse(arguments)
    from alignment.pipeline.cache import find_entries, select

    cache: Path = (args.cache or _default_cache()).expanduser()
    entries = find_entries(cache)
    selection = _selection(args, entries) if args.action == "prune" else None
    if not cache.is_dir():
        print(f"{cache}: there is no such folder, so nothing is cached")
        return 0
    if selection is not None:
        chosen = select(entries, selection)
        return _prune(chosen, cache) if args.yes else _show(chosen, cache)
    _print_entries(entries)
    print(f"{_summary(entries)} in {cache}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Takes a command line apart; an unknown flag ends the process with code 2.

    Raises:
        UserError: There is no such action.
    """
    rest = list(arguments)
    action = "list" if not rest or rest[0].startswith("-") else rest.pop(0)
    if action not in ACTIONS:
        raise ConfigError("align cache", got=action, expected=" or ".join(ACTIONS), hint=nearest(action, ACTIONS))
    parser = argparse.ArgumentParser(prog=f"align cache {action}", add_help=False, allow_abbrev=False)
    parser.set_defaults(action=action)
    parser.add_argument("--cache", type=Path, metavar="DIR")
    if action == "prune":
        parser.add_argument("keys", nargs="*", metavar="KEY")
        parser.add_argument("--kind", metavar="KIND")
        parser.add_argument("--older-than", metavar="TIME")
        for flag in ("--unfinished", "--all", "--yes"):
            parser.add_argument(flag, action="store_true")
    return parser.parse_args(rest)


def seconds(text: str) -> float:
    """Returns a duration in seconds.

    >>> seconds("30d") / 86400, seconds("1.5h") / 60
    (30.0, 90.0)

    Raises:
        ConfigError: It is none.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        expected = "a number with m, h, d or w behind it (minutes, hours, days, weeks)"
        raise ConfigError("--older-than", got=text, expected=expected, hint="For example --older-than 30d")
    return float(found["number"]) * _SECONDS[found["unit"]]


def _default_cache() -> Path:
    """Where runs keep their caches unless they are told otherwise."""
    from omegaconf import OmegaConf

    return Path(OmegaConf.load(conf_dir() / "paths" / "default.yaml").cache)


def _selection(args: argparse.Namespace, entries: Sequence[Entry]) -> Selection:
    from alignment.pipeline.cache import KINDS, Selection

    chosen = [args.keys, args.kind, args.older_than, args.unfinished]
    if not any(chosen) and not args.all:
        raise UserError("align cache prune: say what: KEY, --kind, --older-than, --unfinished or --all")
    if any(chosen) and args.all:
        raise UserError("align cache prune: --all takes every entry; leave it out, or everything else but --yes")
    if args.kind is not None and args.kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ConfigError("--kind", got=args.kind, expected=f"one of {kinds}", hint=nearest(args.kind, KINDS))
    for key in args.keys:
        if not key or not any(entry.key.startswith(key) for entry in entries):
            hint = nearest(key, {entry.key[: len(key)] for entry in entries if key})
            raise ConfigError("KEY", got=key, expected="the beginning of an entry's key; see align cache", hint=hint)
    unused = None if args.older_than is None else seconds(args.older_than)
    return Selection(args.kind, tuple(args.keys), unused, args.unfinished)


def _show(chosen: Sequence[Entry], cache: Path) -> int:
    """Says what would go."""
    from alignment.pipeline.cache import State

    going = [entry for entry in chosen if entry.state is not State.IN_USE]
    _print_entries(chosen)
    print(f"{_summary(going)} of {cache} would be removed{_kept(len(chosen) - len(going))}")
    if any(entry.kind == "reference" for entry in going):
        print("a run with reference=precomputed that was interrupted cannot be resumed without its reference cache")
    if going:
        print("nothing is removed yet: add --yes")
    return 0


def _prune(chosen: Sequence[Entry], cache: Path) -> int:
    from alignment.pipeline.cache import prune

    try:
        removed = prune(chosen)
    except OSError as error:
        print(f"align cache prune: {error.filename or cache}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{_summary(removed)} of {cache} removed{_kept(len(chosen) - len(removed))}")
    return 0


def _kept(num_entries: int) -> str:
    return f"; {num_entries} kept that a running process uses" if num_entries else ""


def _summary(entries: Sequence[Entry]) -> str:
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    return f"{count}, {_size(sum(entry.num_bytes for entry in entries))}"


def _print_entries(entries: Sequence[Entry]) -> None:
    """Prints a line an entry, whatever the width of the terminal: lines are searched and counted."""
    if not entries:
        return
    print(f"{'kind':<11}{'key':<10}{'size':>9}  {'last used':<18}{'state':<12}made of")
    for entry in entries:
        used = datetime.fromtimestamp(entry.last_used).astimezone().strftime("%Y-%m-%d %H:%M")
        what = f"{entry.kind:<11}{entry.short_key:<10}{_size(entry.num_bytes):>9}"
        print(f"{what}  {used:<18}{entry.state:<12}{entry.made_of}".rstrip())


def _size(num_bytes: int) -> str:
    """Returns an amount of storage.

    >>> _size(999), _size(1500), _size(2_340_000_000)
    ('999 B', '1.5 kB', '2.3 GB')
    """
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
