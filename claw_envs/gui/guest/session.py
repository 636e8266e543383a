"""The desktop itself: its processes in the order in which they can start, what is running in it, and the way back to how it was.

    Xvfb ─▶ window manager, message bus ─▶ accessibility bus ─▶ the two workers (`hands`, `tree`) ─▶ ready

Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from guest.screen import Screen
from guest.x11 import Display, Window

START_S = 60.0
"""Longest start of any one part."""
_ATSPI = ("/usr/libexec/at-spi-bus-launcher", "/usr/lib/at-spi2-core/at-spi-bus-launcher")
_GTK = """[Settings]
gtk-cursor-blink=0
gtk-enable-animations=0
gtk-recent-files-enabled=0
gtk-enable-event-sounds=0
"""
_OPENBOX = """<?xml version="1.0" encoding="UTF-8"?>
<openbox_config xmlns="http://openbox.org/3.4/rc">
<theme><name>Clearlooks</name><animateIconify>no</animateIconify></theme>
<desktops><number>1</number><popupTime>0</popupTime></desktops>
<keyboard>
<keybind key="A-F4"><action name="Close"/></keybind>
<keybind key="A-Tab"><action name="NextWindow"><finalactions><action name="Focus"/><action name="Raise"/></finalactions>
</action></keybind>
</keyboard>
<mouse><dragThreshold>1</dragThreshold>
<context name="Titlebar"><mousebind button="Left" action="Drag"><action name="Move"/></mousebind>
<mousebind button="Left" action="DoubleClick"><action name="ToggleMaximize"/></mousebind></context>
<context name="Titlebar Top Bottom Left Right TLCorner TRCorner BLCorner BRCorner">
<mousebind button="Left" action="Press"><action name="Focus"/><action name="Raise"/></mousebind></context>
<context name="Bottom BLCorner BRCorner Left Right Top">
<mousebind button="Left" action="Drag"><action name="Resize"/></mousebind></context>
<context name="Client"><mousebind button="Left" action="Press"><action name="Focus"/><action name="Raise"/></mousebind>
<mousebind button="Right" action="Press"><action name="Focus"/><action name="Raise"/></mousebind></context>
<context name="Close"><mousebind button="Left" action="Click"><action name="Close"/></mousebind></context>
<context name="Maximize"><mousebind button="Left" action="Click"><action name="ToggleMaximize"/></mousebind></context>
<context name="Iconify"><mousebind button="Left" action="Click"><action name="Iconify"/></mousebind></context>
</mouse>
</openbox_config>
"""
_XTERM = ("-fa", "DejaVu Sans Mono", "-fs", "11", "-bg", "white", "-fg", "black", "+sb")
"""What a bare `xterm` is started with: Debian's default font may not be installed."""


class SessionProblem(Exception):
    """The desktop cannot start, or a part of it is gone."""


class SharedMachine(Exception):
    """A reset was asked for where it could hurt others."""


class Worker:
    """A process that answers lines of JSON; killed and started anew when it does not answer in time."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str, log: str) -> None:
        self._argv, self._env, self._cwd, self._log = list(argv), dict(env), cwd, log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self.problem = ""

    def start(self) -> None:
        """Running, though perhaps not ready yet."""
        self._rest = b""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._env, cwd=self._cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def ready(self) -> None:
        """It has said that it is ready. Raises SessionProblem."""
        said = self._line(START_S)
        if said is None:
            raise SessionProblem(f"the worker {self._argv[-1]!r} does not start: {self.last_words()}")
        self.problem = said.get("error", "")

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any] | None:
        """Its answer; None when there was none in time (it is a new process then) or when it died."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                self._again()
                process = self._process
            assert process is not None
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                answer = self._line(limit_s)
            except OSError:
                answer = None
            if answer is None:
                self._again()
            return answer

    def kill(self) -> None:
        """It is dead, and what it started too."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        with contextlib.suppress(OSError), open(self._log, "rb") as log:
            return log.read()[-400:].decode(errors="replace").strip()
        return ""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _again(self) -> None:
        self.kill()
        self.start()
        self.ready()

    def _line(self, limit_s: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + limit_s
        fd = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                return None
            more = os.read(fd, 1 << 20)
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


class Session:
    """One desktop. `home` is where applications keep their settings, `workdir` where they start."""

    def __init__(
        self, size: tuple[int, int], *, home: str, workdir: str, display: str = "", alone: bool = False
    ) -> None:
        """`alone`: this user has the machine to itself, so that a reset may end its processes and remove its files."""
        self.size, self.home, self.workdir, self.alone = size, home, workdir, alone
        self.state = "starting"
        """What it waits for; "ready", or "dead: why"."""
        self._number = display
        self._parts: list[subprocess.Popen[Any]] = []
        self._base: dict[int, str] = {}
        self._home_files: dict[str, bytes] = {}
        self._rest_frame = b""
        self.wallpaper = ""
        self._lock = threading.Lock()

    # ---- starting

    def start(self) -> None:
        """Ready. Raises SessionProblem, or OSError for a program that is not there."""
        self._settings()
        self.env = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "USER", "TERM", "LOGNAME")}
        self.env |= {
            "HOME": self.home, "LANG": "C.UTF-8", "XDG_SESSION_TYPE": "x11", "GDK_BACKEND": "x11", "NO_AT_BRIDGE": "0",
            "GSETTINGS_BACKEND": "memory", "XDG_RUNTIME_DIR": self._folder("run"), "XDG_CURRENT_DESKTOP": "OPENBOX",
            "GTK_OVERLAY_SCROLLING": "0", "GTK_THEME": "Adwaita", "LIBGL_ALWAYS_SOFTWARE": "1",
        }  # fmt: skip
        self.state = "waiting for the X server"
        self._start_server()
        self.state = "waiting for the message bus and the window manager"
        self._start_bus()
        hands, tree = self._worker("hands"), self._worker("tree")
        self.hands, self.tree = hands, tree
        hands.start()
        started = self._start_manager()
        atspi = next((p for p in _ATSPI if os.path.exists(p)), "")
        if not atspi:
            raise SessionProblem("at-spi-bus-launcher is not installed (apt-get install at-spi2-core)")
        self._part([atspi, "--launch-immediately"])
        tree.start()
        self.display = Display(self.env["DISPLAY"])
        self._wait("the window manager", lambda: os.path.exists(started) and self.display.managed())
        self.state = "waiting for the accessibility bus"
        tree.ready()
        hands.ready()
        if hands.problem:
            raise SessionProblem(hands.problem)
        self._keep_as_it_is()
        self.state = "ready"

    def _settings(self) -> None:
        files = {
            ".config/gtk-3.0/settings.ini": _GTK,
            ".config/openbox/rc.xml": _OPENBOX,
            ".config/xfce4/xfconf/xfce-perchannel-xml/thunar.xml": _thunar(),
        }
        for name, content in files.items():
            path = os.path.join(self.home, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
        os.makedirs(self.workdir, exist_ok=True)

    def _folder(self, name: str) -> str:
        base = "/tmp" if self.alone else self.home
        path = f"{base}/.claw-desktop/{name}"
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def _start_server(self) -> None:
        folder = self._folder("screen")
        ours, theirs = os.pipe()
        number = [f":{self._number}"] if self._number else []
        geometry = f"{self.size[0]}x{self.size[1]}x24"
        argv = ["Xvfb", *number, "-displayfd", str(theirs), "-screen", "0", geometry, "-fbdir", folder, "-nolisten", "tcp",
                "-noreset", "-dpi", "96"]  # fmt: skip
        self._part(argv, pass_fds=(theirs,))
        os.close(theirs)
        said = b""
        end = time.monotonic() + START_S
        while not said.endswith(b"\n"):
            if not select.select([ours], [], [], max(0.0, end - time.monotonic()))[0] or not (
                more := os.read(ours, 64)
            ):
                raise SessionProblem("Xvfb does not start")
            said += more
        os.close(ours)
        self.env["DISPLAY"] = f":{int(said)}"
        self.screen = Screen(f"{folder}/Xvfb_screen0")

    def _start_bus(self) -> None:
        path = f"{self._folder('run')}/bus"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.env["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={path}"
        self._part(["dbus-daemon", "--session", "--nofork", "--nopidfile", "--address", f"unix:path={path}"])
        self._wait("the message bus", lambda: os.path.exists(path))

    def _start_manager(self) -> str:
        mark = f"{self._folder('run')}/started"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(mark)
        self._part(["openbox", "--sm-disable", "--startup", f"touch {mark}"])
        return mark

    def _worker(self, name: str) -> Worker:
        argv = [sys.executable, *(["-S"] if name == "hands" else []), sys.argv[0], name]
        return Worker(argv, self.env, self.workdir, f"{self._folder('run')}/{name}.log")

    def _part(self, argv: Sequence[str], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[Any]:
        part = subprocess.Popen(
            argv, env=self.env, cwd=self.home, pass_fds=pass_fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._parts.append(part)
        return part

    def _wait(self, what: str, holds: Any, limit_s: float = START_S) -> None:
        end = time.monotonic() + limit_s
        while not holds():
            self.check()
            if time.monotonic() > end:
                raise SessionProblem(f"{what} did not come within {limit_s:g} s")
            time.sleep(0.005)

    def check(self) -> None:
        """Every part of it lives. Raises SessionProblem."""
        for part in self._parts:
            if part.poll() is not None:
                raise SessionProblem(f"{os.path.basename(part.args[0])} has ended with {part.returncode}")  # type: ignore[index]

    # ---- using it

    def launch(self, command: str | Sequence[str], *, shell: bool = False) -> subprocess.Popen[Any]:
        """Starts an application. Raises OSError when there is no such program."""
        env = {**self.env, "PWD": self.workdir}
        if not shell and list(command)[:1] == ["xterm"]:
            command = ["xterm", *_XTERM, *command[1:]]
        return subprocess.Popen(
            command, shell=shell, env=env, cwd=self.workdir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def windows(self) -> list[Window]:
        with self._lock:
            return self.display.windows()

    def find(self, name: str, *, strict: bool, by_class: bool) -> Window | None:
        """The newest window whose title (or class) is or holds `name`."""
        for window in reversed(self.windows()):
            text = window.wm_class if by_class else window.title
            if text == name or (not strict and name.lower() in text.lower()):
                return window
        return None

    def act_on(self, window: Window, what: str) -> None:
        """`what`: "activate" or "close"."""
        with self._lock:
            (self.display.activate if what == "activate" else self.display.close_window)(window.id)

    def busy(self) -> bool:
        """Whether an application or the X server is at work (or waits for the processor) just now, on any of its threads."""
        others = [p for p in _processes() if p not in self._base and p not in (self.hands.pid, self.tree.pid)]
        return any(_at_work(pid) for pid in (*others, self._parts[0].pid))

    # ---- the way back

    def _keep_as_it_is(self) -> None:
        """What a reset goes back to: these processes, these files, this picture."""
        with self._lock:
            self.display.move(self.size[0] // 2, self.size[1] // 2)
        self._rest_frame = self.screen.settle(start_s=0.05, quiet_s=0.05, longest_s=5.0).frame.pixels
        self._base = _processes()
        for folder, _, names in os.walk(self.home):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 1 << 20:
                    with open(path, "rb") as file:
                        self._home_files[path] = file.read()

    def reset(self) -> str:
        """The desktop is as it was when it became ready; "" when that is proved, else what is different.

        Raises SharedMachine, and touches nothing, unless the desktop is alone on its machine and not the superuser's: what a
        reset ends and removes may otherwise be anybody's.
        """
        if not self.alone or os.geteuid() == 0:
            raise SharedMachine(
                "this desktop shares its machine with others; only one started with --alone, and not as root, resets"
            )
        self.hands.kill()
        self._kill_others()
        with self._lock:
            self.display.release_all()
            self.display.move(self.size[0] // 2, self.size[1] // 2)
        self._clean_files()
        self.hands.start()
        self._base[self.hands.pid] = _started(self.hands.pid)
        try:
            self.check()
            self._wait("the end of the last window", lambda: not self.windows(), 2.0)
            self.hands.ready()
        except SessionProblem as problem:
            return str(problem)
        if extra := _processes().keys() - self._base.keys() - {self.hands.pid}:
            return f"processes {sorted(extra)} are still there"
        self.wallpaper = ""
        end = time.monotonic() + 1.0
        while self.screen.frame().pixels != self._rest_frame:
            if time.monotonic() > end:
                return "the screen does not look as it did at the start"
            time.sleep(0.005)
        return ""

    def _kill_others(self) -> None:
        """Whatever of this user's processes was not there at the start is dead."""
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            others = [p for p, started in _processes().items() if self._base.get(p) != started]
            if not others:
                return
            for pid in others:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.003)

    def _clean_files(self) -> None:
        for folder in (self.workdir, "/tmp", "/var/tmp", "/dev/shm"):
            for entry in _entries(folder):
                if entry.name in (".claw-desktop", ".X11-unix", ".ICE-unix") or (
                    entry.name.startswith((".X", "claw-guest"))
                ):
                    continue
                _remove(entry.path)
        for folder, _, names in os.walk(self.home):
            for name in names:
                path = os.path.join(folder, name)
                if path not in self._home_files and not path.startswith(f"{self.home}/.cache/at-spi"):
                    _remove(path)
        for path, content in self._home_files.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)

    def stop(self) -> None:
        """Nothing of it runs any more."""
        for worker in (getattr(self, "hands", None), getattr(self, "tree", None)):
            if worker is not None:
                worker.kill()
        for part in reversed(self._parts):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)
            part.wait()


def _processes() -> dict[int, str]:
    """This user's processes but this one and the ancestors of it: number → when it started."""
    me, out = os.getuid(), {}
    above = _ancestors()  # the processes of whoever started the guest are not its own
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in above:
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == me and (started := _started(int(name))):
                    out[int(name)] = started
    return out


def _at_work(pid: int) -> bool:
    """Whether any thread of the process runs, could run, or waits for a disk."""
    with contextlib.suppress(OSError, IndexError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
                if file.read(512).rpartition(b")")[2].split()[0] in (b"R", b"D"):
                    return True
    return False


def _ancestors() -> set[int]:
    out, pid = set(), os.getpid()
    while pid > 0:
        out.add(pid)
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
    return out


def _started(pid: int) -> str:
    """When it started, in ticks; "" when it is gone or only waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def _thunar() -> str:
    """Its settings: what differs from one run to the next (free space, times, mounted disks) is not shown."""
    rows = {
        "last-statusbar-visible": ("bool", "false"),
        "last-show-hidden": ("bool", "false"),
        "last-side-pane": ("string", "THUNAR_SIDEPANE_TYPE_NONE"),
        "last-view": ("string", "ThunarDetailsView"),
        "last-details-view-visible-columns": ("string", "THUNAR_COLUMN_NAME"),
        "misc-confirm-close-multiple-tabs": ("bool", "false"),
        "misc-thumbnail-mode": ("string", "THUNAR_THUMBNAIL_MODE_NEVER"),
    }
    body = "".join(f'<property name="{k}" type="{t}" value="{v}"/>' for k, (t, v) in rows.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><channel name="thunar" version="1.0">{body}</channel>'
