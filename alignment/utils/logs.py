"""A run's own log file."""

from __future__ import annotations

import logging
import sys
import warnings
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


def quiet_libraries() -> None:
    """Lets the libraries below speak of trouble only: their advertisements and notes drown what a run has to say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
    # On a CPU it asks for a package of kernels whenever it is imported, which peft does.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.*deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*does not have many workers")
    # Where nothing is held out, or prompts only.
    warnings.filterwarnings("ignore", message=r"Total length of .* across ranks is zero")
    warnings.filterwarnings("ignore", message=r".*is smaller than the logging interval")
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
