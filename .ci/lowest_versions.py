"""Prints pip constraints that pin every dependency to the lower end of its range in pyproject.toml.

Usage: python .ci/lowest_versions.py [NAME ...]; the named packages stay free.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lowest(requirement: str) -> tuple[str, str] | None:
    """Returns the name and the constraint of a requirement with a lower bound.

    >>> lowest("torch>=2.10,<2.14")
    ('torch', 'torch==2.10.*')
    >>> lowest("jinja2>=3.1.4")
    ('jinja2', 'jinja2==3.1.4')
    """
    found = re.match(r"\s*([\w.-]+)[^>;]*>=\s*([\d.]+)", requirement)
    if found is None:
        return None
    name, version = found[1], found[2]
    return name, f"{name}=={version}" if version.count(".") > 1 else f"{name}=={version}.*"


def main() -> None:
    """Prints one constraint a line."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["judge"], *extras["sweep"]]
    for pin in filter(None, map(lowest, requirements)):
        if pin[0] not in sys.argv[1:]:
            print(pin[1])


if __name__ == "__main__":
    main()
