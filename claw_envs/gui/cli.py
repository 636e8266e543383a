"""`python -m claw_envs gui …`: are task files sound, what do screens look like, and a desktop to try by hand.

gui verify [DIR]      the generated tasks (each oracle must pass, each habit fail), or OSWorld's task files in DIR
gui record            plays every family and shape once and keeps what the screens showed, for demonstrations
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from claw_envs.errors import ClawError, InfraError

USAGE = """usage: python -m claw_envs gui verify [DIR] [provider=NAME] [families=A,B]
       python -m claw_envs gui record [again] [families=A,B]
       python -m claw_envs gui film EPISODE.json OUT.gif|OUT.png

verify without DIR plays every family of generated tasks once, as it should be and as it should not; with DIR it says which of
the OSWorld task files there can run here, and why the others cannot."""


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 all sound, 1 something is not, 2 wrong usage."""
    options = dict(a.split("=", 1) for a in argv if "=" in a)
    words = [a for a in argv if "=" not in a]
    if len(words) == 3 and words[0] == "film":
        return _film(Path(words[1]), Path(words[2]))
    if not words or words[0] not in ("verify", "record") or len(words) > 2 or options.keys() - {"provider", "families"}:
        print(USAGE, file=sys.stderr)
        return 2
    families = options["families"].split(",") if "families" in options else None
    try:
        if words[0] == "record":
            return _record(families, again="again" in words)
        if len(words) == 2:
            from claw_envs.gui.osworld import verify_folder

            return verify_folder(Path(words[1]))
        return _verify(families, options.get("provider", "namespace"))
    except ClawError as e:
        print(e, file=sys.stderr)
        return 1


def _film(episode: Path, out: Path) -> int:
    from claw_envs.gui.film import of_episode, save

    try:
        film = of_episode(json.loads(episode.read_text(encoding="utf-8").splitlines()[0]))
    except (OSError, ValueError, KeyError, IndexError, ClawError) as error:
        print(f"{episode} holds no episode that can be shown: {error}", file=sys.stderr)
        return 1
    save(film, out)
    print(f"{len(film)} pictures in {out}")
    return 0


def _record(families: list[str] | None, *, again: bool) -> int:
    from claw_envs.gui.demos import record
    from claw_envs.gui.env import GuiEnv

    bad = 0
    with closing(GuiEnv(sees="tree", max_turns=100)) as env:
        for key, problem in record(env, families=families, again=again):
            bad += bool(problem)
            print(f"{key}: {problem or 'kept'}", flush=True)
    return 1 if bad else 0


def _verify(families: list[str] | None, provider: str) -> int:
    from claw_envs.gui.demos import Way, played
    from claw_envs.gui.env import GuiEnv
    from claw_envs.gui.families import choose
    from claw_envs.gui.tasks import GeneratedTask, load

    chosen = choose(families)
    bad = 0
    ways: tuple[tuple[Way, bool], ...] = (("oracle", True), ("habit", False))
    with closing(GuiEnv(sees="tree", max_turns=100, provider=provider)) as env:
        for task in load("train", families=[f.name for f in chosen], count=len(chosen)):
            assert isinstance(task, GeneratedTask)
            problem = ""
            began = time.monotonic()
            for way, right in ways:
                try:
                    kept, success = played(env, task, way)
                except (InfraError, KeyError) as error:
                    problem = f"{way}: {error}"
                    break
                if success is not right:
                    problem = f"the {way} ended with success={success}: {kept.said}"
                    break
            bad += bool(problem)
            print(f"{task.family}: {problem or 'sound'} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{len(chosen)} families, {bad} with problems")
    return 1 if bad else 0
