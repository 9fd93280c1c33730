"""One colour, marker and dash for each run, the same in every figure, on light and on dark paper."""

from __future__ import annotations

# After Okabe and Ito (2008), moved in lightness until each has a contrast of 3 to its paper.
LIGHT = ("#0072b2", "#d55e00", "#008f68", "#b8508c", "#a87900", "#3a96d0", "#5a5a5a", "#7a4fa3")
DARK = ("#5ab0ea", "#ff9147", "#2fcb9d", "#ec96c7", "#e3b53a", "#a5daf8", "#c6c6c6", "#b99ae6")
# More configurations than that are an ordered ramp (viridis, its ends cut off against the paper).
LIGHT_RAMP = ("#440154", "#3b528b", "#21808c", "#2f9e5d", "#93a50a")
DARK_RAMP = ("#b48ae8", "#6f93e0", "#2fb8b4", "#72d468", "#f4e04a")

MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def group_colors(num_groups: int) -> list[tuple[str, str]]:
    """Returns (light, dark) for each configuration."""
    if num_groups <= len(LIGHT):
        return [(LIGHT[i], DARK[i]) for i in range(num_groups)]
    places = [i / (num_groups - 1) for i in range(num_groups)]
    return [(_ramp(LIGHT_RAMP, place), _ramp(DARK_RAMP, place)) for place in places]


def variable(group: int) -> str:
    """Returns the CSS variable that holds a configuration's colour.

    >>> variable(3)
    'var(--group-3)'
    """
    return f"var(--group-{group})"


def marker(group: int) -> str:
    """Returns the marker of a configuration."""
    return MARKERS[group % len(MARKERS)]


def dash(member: int) -> str:
    """Returns the dash of a seed of a configuration."""
    return DASHES[member % len(DASHES)]


def _ramp(anchors: tuple[str, ...], place: float) -> str:
    """Mixes the two neighbouring anchors, linearly in RGB.

    >>> _ramp(("#000000", "#ffffff"), 0.5)
    '#808080'
    """
    position = place * (len(anchors) - 1)
    left = min(int(position), len(anchors) - 2)
    share = position - left
    pairs = zip(_channels(anchors[left]), _channels(anchors[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _channels(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]
