"""Ship recipes and cards inside the package, in wheels only.

An editable install must not get them: a folder `zoo` in site-packages would hide the checkout's package.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedFolders(BuildHookInterface):  # type: ignore[misc, type-arg]
    """Puts recipes/ and datasets/ under zoo/ in a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say what goes where; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"] |= {"recipes": "zoo/recipes", "datasets": "zoo/datasets"}
