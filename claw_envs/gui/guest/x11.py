"""A connection to the X server through ctypes: synthetic input, the pointer, the keyboard map, and windows.

Knows neither HTTP nor pyautogui. One connection is one thread's at a time. Sources: the Xlib manual,
https://www.x.org/releases/current/doc/libX11/libX11/libX11.html, and the window manager hints,
https://specifications.freedesktop.org/wm-spec/latest/
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_ubyte, c_uint, c_ulong, c_void_p
from typing import Any, NamedTuple

_ANY_PROPERTY = 0
_CLIENT_MESSAGE = 33
_SUBSTRUCTURE = 0x180000  # redirect and notify
_MOST_WINDOWS = 4096


class Window(NamedTuple):
    """One window that the window manager manages; position and size are those of its content on the screen, pixels."""

    id: int
    title: str
    wm_class: str
    """Instance and class, joined by a dot."""
    x: int
    y: int
    width: int
    height: int
    active: bool
    pid: int


class XProblem(Exception):
    """The X server is gone, or refuses what was asked."""


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("x", c_int), ("y", c_int), ("width", c_int), ("height", c_int), ("border_width", c_int), ("depth", c_int),
        ("rest", c_ubyte * 256),
    ]  # fmt: skip


class _ClientMessage(ctypes.Structure):
    _fields_ = [
        ("type", c_int), ("serial", c_ulong), ("send_event", c_int), ("display", c_void_p), ("window", c_ulong),
        ("message_type", c_ulong), ("format", c_int), ("data", c_long * 5), ("pad", c_ubyte * 128),
    ]  # fmt: skip


def _libraries() -> tuple[Any, Any]:
    x, t = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXtst.so.6")
    x.XOpenDisplay.restype = c_void_p
    x.XOpenDisplay.argtypes = [c_char_p]
    for name in ("XDefaultRootWindow", "XInternAtom", "XStringToKeysym"):
        getattr(x, name).restype = c_ulong
    x.XInternAtom.argtypes = [c_void_p, c_char_p, c_int]
    x.XStringToKeysym.argtypes = [c_char_p]
    x.XKeysymToKeycode.restype = c_ubyte
    x.XKeysymToKeycode.argtypes = [c_void_p, c_ulong]
    x.XkbKeycodeToKeysym.restype = c_ulong
    x.XkbKeycodeToKeysym.argtypes = [c_void_p, c_ubyte, c_uint, c_uint]
    x.XGetKeyboardMapping.restype = POINTER(c_ulong)
    x.XGetKeyboardMapping.argtypes = [c_void_p, c_ubyte, c_int, POINTER(c_int)]
    x.XChangeKeyboardMapping.argtypes = [c_void_p, c_int, c_int, POINTER(c_ulong), c_int]
    for name in ("XDefaultRootWindow", "XSync", "XFlush", "XCloseDisplay", "XDefaultScreen", "XFree", "XPending"):
        getattr(x, name).argtypes = [c_void_p] + ([c_int] if name == "XSync" else [])
    x.XDisplayWidth.argtypes = x.XDisplayHeight.argtypes = [c_void_p, c_int]
    x.XQueryKeymap.argtypes = [c_void_p, c_char_p]
    t.XTestFakeKeyEvent.argtypes = [c_void_p, c_uint, c_int, c_ulong]
    t.XTestFakeButtonEvent.argtypes = [c_void_p, c_uint, c_int, c_ulong]
    t.XTestFakeMotionEvent.argtypes = [c_void_p, c_int, c_int, c_int, c_ulong]
    x.XSetErrorHandler(_IGNORE)
    return x, t


@ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
def _IGNORE(_display: Any, _event: Any) -> int:  # noqa: N802 (a constant)
    """A window may be gone before it is asked about: that is no reason to end the process, which is Xlib's default."""
    return 0


class Display:
    """See the module. Raises XProblem when there is no server."""

    def __init__(self, name: str | None = None) -> None:
        self._x, self._t = _libraries()
        self._d = self._x.XOpenDisplay(name.encode() if name else None)
        if not self._d:
            raise XProblem(f"no X server answers at {name!r}")
        self.root = self._x.XDefaultRootWindow(self._d)
        screen = self._x.XDefaultScreen(self._d)
        self.size: tuple[int, int] = (
            self._x.XDisplayWidth(self._d, screen),
            self._x.XDisplayHeight(self._d, screen),
        )
        self._atoms: dict[str, int] = {}
        self._lent: dict[int, int] = {}
        """Keysym → keycode of spare keys that were given a character of their own."""

    def close(self) -> None:
        self._x.XCloseDisplay(self._d)

    def sync(self) -> None:
        """Everything sent so far has been done by the server."""
        self._x.XSync(self._d, 0)

    # ---- input

    def move(self, x: int, y: int) -> None:
        """The pointer is at (x, y), or where the screen's edge holds it."""
        self._t.XTestFakeMotionEvent(self._d, -1, x, y, 0)
        self.sync()

    def button(self, number: int, down: bool) -> None:
        self._t.XTestFakeButtonEvent(self._d, number, down, 0)
        self.sync()

    def key(self, code: int, down: bool) -> None:
        self._t.XTestFakeKeyEvent(self._d, code, down, 0)
        self.sync()

    def pointer(self) -> tuple[int, int]:
        """Where the pointer is."""
        a, b, c, d, e = c_ulong(), c_ulong(), c_int(), c_int(), c_int()
        f, mask = c_int(), c_uint()
        self._x.XQueryPointer(
            c_void_p(self._d),
            c_ulong(self.root),
            byref(a),
            byref(b),
            byref(c),
            byref(d),
            byref(e),
            byref(f),
            byref(mask),
        )
        return c.value, d.value

    def keysym(self, name: str) -> int:
        """The keysym called `name` ("Return"), or of a character; 0 when there is none."""
        if len(name) == 1:
            point = ord(name)
            return point if 0x20 <= point <= 0x7E or 0xA0 <= point <= 0xFF else 0x1000000 | point
        return self._x.XStringToKeysym(name.encode())

    def keycode(self, keysym: int) -> tuple[int, bool]:
        """(key, whether Shift goes with it) that gives `keysym`; a spare key is lent where the layout has none."""
        found = self._keys().get(keysym)
        if found is not None:
            return found
        if keysym not in self._lent:
            self._lend(keysym)
        return self._lent[keysym], False

    def _keys(self) -> dict[int, tuple[int, bool]]:
        """Every keysym of the layout's first two levels. Of two keys with the same one the lower number wins: on a
        105-key layout `<` is also on key 94, where other layouts have something else."""
        if not hasattr(self, "_table"):
            self._table: dict[int, tuple[int, bool]] = {}
            for level in (0, 1):
                for code in range(8, 256):
                    keysym = self._x.XkbKeycodeToKeysym(self._d, code, 0, level)
                    if keysym and code != 94:
                        self._table.setdefault(keysym, (code, level == 1))
        return self._table

    def _lend(self, keysym: int) -> None:
        width = c_int()
        spare = []
        for code in range(255, 7, -1):
            row = self._x.XGetKeyboardMapping(self._d, code, 1, byref(width))
            if not any(row[i] for i in range(width.value)):
                spare.append(code)
            self._x.XFree(ctypes.cast(row, c_void_p))
        taken = set(self._lent.values())
        code = next((c for c in spare if c not in taken), None)
        if code is None:  # as many characters as spare keys are on loan: the one lent longest is given back
            oldest = next(iter(self._lent))
            code = self._lent.pop(oldest)
        both = (c_ulong * 2)(keysym, keysym)
        self._x.XChangeKeyboardMapping(self._d, code, 2, both, 1)
        self.sync()
        self._lent[keysym] = code

    def release_all(self) -> None:
        """No key and no button is held down."""
        held = ctypes.create_string_buffer(32)
        self._x.XQueryKeymap(self._d, held)
        for code in range(8, 256):
            if held.raw[code // 8] >> (code % 8) & 1:
                self._t.XTestFakeKeyEvent(self._d, code, 0, 0)
        for number in range(1, 10):
            self._t.XTestFakeButtonEvent(self._d, number, 0, 0)
        self.sync()

    # ---- windows

    def windows(self) -> list[Window]:
        """Managed windows, oldest first."""
        active = next(iter(self._numbers(self.root, "_NET_ACTIVE_WINDOW")), 0)
        return [w for i in self._numbers(self.root, "_NET_CLIENT_LIST") if (w := self._window(i, i == active))]

    def top_windows(self) -> list[Window]:
        """Managed windows, undermost first."""
        active = next(iter(self._numbers(self.root, "_NET_ACTIVE_WINDOW")), 0)
        stacked = self._numbers(self.root, "_NET_CLIENT_LIST_STACKING")
        return [w for i in stacked if (w := self._window(i, i == active))]

    def managed(self) -> bool:
        """Whether a window manager says that it runs."""
        return bool(self._numbers(self.root, "_NET_SUPPORTING_WM_CHECK"))

    def activate(self, window: int) -> None:
        """The window manager is asked to raise and focus it."""
        self._ask(window, "_NET_ACTIVE_WINDOW", 2)

    def close_window(self, window: int) -> None:
        """The window manager is asked to close it, as its button would."""
        self._ask(window, "_NET_CLOSE_WINDOW", 0, 2)

    def kill_window(self, window: int) -> None:
        """Its application loses its connection."""
        self._x.XKillClient(c_void_p(self._d), c_ulong(window))
        self.sync()

    def _window(self, window: int, active: bool) -> Window | None:
        attributes = _Attributes()
        if not self._x.XGetWindowAttributes(c_void_p(self._d), c_ulong(window), byref(attributes)):
            return None
        x, y, child = c_int(), c_int(), c_ulong()
        self._x.XTranslateCoordinates(
            c_void_p(self._d), c_ulong(window), c_ulong(self.root), 0, 0, byref(x), byref(y), byref(child)
        )
        title = self._bytes(window, "_NET_WM_NAME") or self._bytes(window, "WM_NAME")
        classes = [p.decode(errors="replace") for p in self._bytes(window, "WM_CLASS").split(b"\0") if p]
        pid = next(iter(self._numbers(window, "_NET_WM_PID")), 0)
        return Window(
            window, title.decode(errors="replace"), ".".join(classes), x.value, y.value,
            attributes.width, attributes.height, active, pid,
        )  # fmt: skip

    def _ask(self, window: int, atom: str, *data: int) -> None:
        event = _ClientMessage()
        event.type, event.window, event.format = _CLIENT_MESSAGE, window, 32
        event.message_type = self._atom(atom)
        for i, value in enumerate(data):
            event.data[i] = value
        self._x.XSendEvent(c_void_p(self._d), c_ulong(self.root), 0, c_long(_SUBSTRUCTURE), byref(event))
        self.sync()

    def _atom(self, name: str) -> int:
        if name not in self._atoms:
            self._atoms[name] = self._x.XInternAtom(self._d, name.encode(), 0)
        return self._atoms[name]

    def _numbers(self, window: int, name: str) -> list[int]:
        return [int(v) for v in self._property(window, name, 32)]

    def _bytes(self, window: int, name: str) -> bytes:
        return bytes(self._property(window, name, 8))

    def _property(self, window: int, name: str, width: int) -> Iterator[int]:
        kind, form, count, more = c_ulong(), c_int(), c_ulong(), c_ulong()
        data = POINTER(c_ulong)()
        failed = self._x.XGetWindowProperty(
            c_void_p(self._d), c_ulong(window), c_ulong(self._atom(name)), c_long(0), c_long(_MOST_WINDOWS), 0,
            c_ulong(_ANY_PROPERTY), byref(kind), byref(form), byref(count), byref(more), byref(data),
        )  # fmt: skip
        if failed or not data:
            return iter(())
        typed = ctypes.cast(data, POINTER(c_ulong if width == 32 else c_ubyte))
        values = [typed[i] for i in range(count.value)] if form.value == width else []
        self._x.XFree(ctypes.cast(data, c_void_p))
        return iter(values)
