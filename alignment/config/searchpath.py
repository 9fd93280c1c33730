"""Puts the named sweeps on Hydra's search path, so that ``+sweep=NAME`` works from anywhere."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from alignment.config.paths import sweeps_dir


class SweepsSearchPath(SearchPathPlugin):
    """Hydra calls it whenever it builds a search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder of the named sweeps."""
        search_path.append(provider="sweeps", path=f"file://{sweeps_dir()}")


def register_search_path() -> None:
    """Registers the plugin; calling it again changes nothing."""
    Plugins.instance().register(SweepsSearchPath)
