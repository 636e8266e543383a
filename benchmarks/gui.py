"""Desktops: `python -m benchmarks.gui [--runs 5] [--desktops 8] [--provider namespace]`.

How long it takes from an action to the settled screenshot, to grab a screen, to read the accessibility tree, and to get a desktop
from the warm pool; how many run in parallel and with how much memory; and what a driver that is killed leaves behind. What the
nano policy learns on the generated tasks is measured by a run: `python -m claw_train +env=gui +method=grpo loop.budget_s=600`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.common import arguments, median, report, table
from claw_envs.errors import ClawError
from claw_envs.gui.client import Desktop
from claw_envs.gui.providers import GUEST_FILE, Provider, make_provider

_DRIVER = """
import sys
from claw_envs.gui.providers import make_provider
provider = make_provider("namespace", pool={"warm": 1})
machines = [provider.start() for _ in range(3)]
for machine in machines:
    machine.desktop.launch(["mousepad"])
print("ready", flush=True)
sys.stdin.read()
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--desktops", type=int, default=8, help="that run in parallel (default 8; 0: not measured)")
    parser.add_argument("--provider", default="namespace", help="namespace, docker or vm (default namespace)")
    options = parser.parse_args(argv)
    try:
        provider = make_provider(options.provider)
        figures = single(provider, options.runs) | pool(provider, options.runs)
        if options.desktops and options.provider == "namespace":
            figures |= parallel(options.desktops) | killed()
    except ClawError as error:
        raise SystemExit(str(error)) from error
    report("gui", table(["", "figure"], [[k, v] for k, v in figures.items()]), {"figures": figures}, options.json)


def single(provider: Provider, runs: int) -> dict[str, float]:
    """One desktop with an editor open."""
    began = time.perf_counter()
    machine = provider.start()
    first_s = time.perf_counter() - began
    desktop = machine.desktop
    desktop.upload("/workspace/a.txt", b"one\n")
    began = time.perf_counter()
    desktop.launch(["mousepad", "a.txt"])
    while not desktop.windows():
        time.sleep(0.005)
    desktop.settled(start_s=0.2, quiet_s=0.1, longest_s=10)
    opened_s = time.perf_counter() - began
    try:
        acting = [_acted(desktop, i) for i in range(max(20, runs * 4))]
        return {
            "desktop, cold start: s": first_s,
            "editor open and settled: s": opened_s,
            "action to settled screenshot, p50: ms": median(acting) * 1e3,
            "action to settled screenshot, p90: ms": quantiles(acting, n=10)[-1] * 1e3,
            "of it the action itself, p50: ms": _median_ms(lambda: desktop.act("pyautogui.press('left')"), runs * 4),
            "screenshot (PNG, 1280 x 800), p50: ms": _median_ms(desktop.screenshot, runs * 4),
            "accessibility tree, what is shown, p50: ms": _median_ms(desktop.tree, runs),
            "accessibility tree, all, p50: ms": _median_ms(lambda: desktop.tree(showing=False), runs),
        }
    finally:
        machine.close()


def _acted(desktop: Desktop, i: int) -> float:
    """From sending a key to holding the screenshot of the screen at rest, seconds."""
    began = time.perf_counter()
    desktop.act(f"pyautogui.write('{'abcdefgh'[i % 8]}')")
    desktop.settled()
    return time.perf_counter() - began


def _median_ms(what: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        what()
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


def pool(provider: Provider, runs: int) -> dict[str, float]:
    """How long an episode waits for its desktop when one is warm, and how long the way back to clean takes off its time."""
    waits = []
    for _ in range(runs + 1):
        machine = provider.start()
        machine.desktop.launch(["xterm"])
        machine.close()
        time.sleep(3.0)  # what is measured is a pool that has had time to fill
        began = time.perf_counter()
        machine = provider.start()
        waits.append(time.perf_counter() - began)
        machine.close()
    out = {"desktop from the warm pool, p50: ms": median(waits[1:]) * 1e3}
    if provider.name in ("namespace", "docker"):
        machine = provider.start()
        times = []
        for _ in range(runs):
            machine.desktop.launch(["xterm"])
            machine.desktop.settled(start_s=1.0)
            began = time.perf_counter()
            machine.desktop.reset()
            times.append(time.perf_counter() - began)
        machine.close()
        out["reset of a used desktop, proved, p50: ms"] = median(times) * 1e3
    return out


def parallel(count: int) -> dict[str, float]:
    """`count` desktops at once, an editor in each, all acting."""
    provider = make_provider("namespace", pool={"warm": 0, "most": count, "starters": 4})
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        machines = list(threads.map(lambda _: provider.start(), range(count)))
        ready_s = time.perf_counter() - began

        def use(i: int) -> list[float]:
            desktop = machines[i].desktop
            desktop.launch(["mousepad"])
            while not desktop.windows():
                time.sleep(0.01)
            desktop.settled(start_s=0.2, longest_s=20)
            return [_acted(desktop, j) for j in range(10)]

        times = [t for row in threads.map(use, range(count)) for t in row]
        memory_mb = _memory_kb() / 1024
        for machine in machines:
            machine.close()
    provider.close()
    return {
        f"{count} desktops ready: s": ready_s,
        f"{count} desktops acting, action to settled screenshot, p50: ms": median(times) * 1e3,
        f"{count} desktops with an editor each, memory of one (proportional): MiB": memory_mb / count,
    }


def _memory_kb() -> int:
    """Proportional memory of all processes of all desktops, kB."""
    total = 0
    for pid in _desktop_processes():
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def _desktop_processes() -> set[int]:
    """X servers, guests, and everything in the same process namespaces as they."""
    spaces = set()
    for pid in _servers():
        try:
            spaces.add(os.readlink(f"/proc/{pid}/ns/pid"))
        except OSError:
            continue
    out = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.readlink(f"/proc/{name}/ns/pid") in spaces:
                    out.add(int(name))
            except OSError:
                continue
    return out


def _servers() -> set[int]:
    out = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"Xvfb\0") or GUEST_FILE.encode() in command:
                out.add(int(name))
    return out


def killed() -> dict[str, float]:
    """What is left of three desktops when their driver is killed."""
    folder = "/tmp/.X11-unix"
    sockets = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    before = _servers()
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    driver.stdout.readline()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    began = time.perf_counter()
    while _servers() - before and time.perf_counter() - began < 10:
        time.sleep(0.005)
    gone_s = time.perf_counter() - began
    after = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    return {
        "X servers and guests left after kill -9": float(len(_servers() - before)),
        "X sockets left after kill -9": float(len(after - sockets)),
        "gone after: ms": gone_s * 1e3,
    }


if __name__ == "__main__":
    main()
