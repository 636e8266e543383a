"""OSWorld's task files: what they say, whether they can run here, and how they are set up and scored.

Format: https://github.com/xlang-ai/OSWorld (evaluation_examples). Not complete yet: see `claw_envs.gui.tasks` for generated tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from claw_envs.errors import ConfigError
from claw_envs.gui.tasks import GuiTask


def load_folder(path: Path, split: str) -> Sequence[GuiTask]:
    """The tasks of a file or folder. Raises TaskError."""
    raise ConfigError(f"{path}: OSWorld's task files cannot be loaded yet")


def verify_folder(path: Path) -> int:
    """Says which tasks can run here. Exit code."""
    raise ConfigError(f"{path}: OSWorld's task files cannot be loaded yet")
