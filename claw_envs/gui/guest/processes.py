"""This user's processes, as the kernel tells of them."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NamedTuple


class Process(NamedTuple):
    """One process; the same number with another start is another process."""

    started: str
    """In ticks since the machine started."""
    parent: int


def mine() -> dict[int, Process]:
    """This user's processes but this one and the ancestors of it, which are not the guest's own; the dead ones left out."""
    me, above, out = os.getuid(), ancestors(), {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in above:
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == me and (found := look(int(name))) is not None:
                    out[int(name)] = found
    return out


def look(pid: int) -> Process | None:
    """The process; None when it is gone or only waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] == "Z" else Process(fields[19], int(fields[1]))
    except (OSError, IndexError):
        return None


def children(pid: int) -> list[int]:
    """Its living children."""
    return [number for number, found in mine().items() if found.parent == pid]


def at_work(pid: int) -> bool:
    """Whether any thread of it runs, could run, or waits for a disk."""
    with contextlib.suppress(OSError, IndexError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                if file.read(512).rpartition(b")")[2].split()[0] in (b"R", b"D"):
                    return True
    return False


def kill_group(pid: int) -> None:
    """The process, and its group where it leads one, is told to die at once."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def ancestors() -> set[int]:
    """This process, its parent, its parent's parent, and so on."""
    out, pid = set(), os.getpid()
    while pid > 0:
        out.add(pid)
        found = look(pid)
        if found is None:
            break
        pid = found.parent
    return out
