"""The names that this package registers, without those of other packages that are installed beside it.

For tests that give what they make arguments, which they cannot know for a stranger's.
"""

from importlib import metadata


def own(group: str) -> list[str]:
    """This package's names in a group, sorted."""
    points = metadata.entry_points(group=f"sj_online.{group}")
    return sorted(point.name for point in points if point.dist is not None and point.dist.name == "sj-online")
