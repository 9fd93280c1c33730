"""A run's own log file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def log_to(path: Path, *, active: bool = True) -> Iterator[None]:
    """Copies what this project logs into a file while the context lasts.

    Args:
        path: Added to when it exists, so that a resumed run's log goes on.
        active: False writes nothing: on all ranks but the first.
    """
    if not active:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("alignment", "lightning.pytorch")]
    for logger in loggers:
        logger.addHandler(handler)
    logging.getLogger("alignment").setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
