"""The accessibility bus, asked directly: what all applications show, in a few rounds of messages that are under way at once.

All objects of one level are asked for everything at once, so a reading takes as many rounds as the tree is deep.
Protocol: https://gitlab.gnome.org/GNOME/at-spi2-core/-/tree/main/xml
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

ROOT = "/org/a11y/atspi/accessible/root"
REGISTRY = "org.a11y.atspi.Registry"
_PREFIX = "org.a11y.atspi."
Ref = tuple[str, str]
_PROPERTIES = "org.freedesktop.DBus.Properties"
_MOST_FIXED = 50_000
_VALUED = frozenset(("slider", "spin-button", "progress-bar", "dial", "level-bar", "rating"))

STATES = (
    "invalid", "active", "armed", "busy", "checked", "collapsed", "defunct", "editable", "enabled", "expandable", "expanded",
    "focusable", "focused", "has-tooltip", "horizontal", "iconified", "modal", "multi-line", "multiselectable", "opaque",
    "pressed", "resizable", "selectable", "selected", "sensitive", "showing", "single-line", "stale", "transient", "vertical",
    "visible", "manages-descendants", "indeterminate", "required", "truncated", "animated", "invalid-entry",
    "supports-autocompletion", "selectable-text", "is-default", "visited", "checkable", "has-popup", "read-only",
)  # fmt: skip
"""By bit, as the protocol counts them."""


@dataclass
class Node:
    """One accessible object."""

    ref: Ref
    name: str = ""
    role: str = ""
    states: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    children: list[Ref] = field(default_factory=list)
    count: int = 0
    """How many children it says it has; some say 2^31."""
    box: tuple[int, int, int, int] | None = None
    text: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> bool:
        return "showing" in self.states and "visible" in self.states


class Bus:
    """A connection to the accessibility bus."""

    def __init__(self) -> None:
        import gi  # pyright: ignore[reportMissingImports] (Debian's own, in the guest)

        gi.require_version("Atspi", "2.0")
        from gi.repository import Atspi, Gio, GLib  # pyright: ignore[reportMissingImports]

        self._glib, self._gio = GLib, Gio
        self._role_name = Atspi.role_get_name
        self._flags = Gio.DBusCallFlags.NONE
        session = Gio.bus_get_sync(Gio.BusType.SESSION)
        reply = session.call_sync(
            "org.a11y.Bus",
            "/org/a11y/bus",
            "org.a11y.Bus",
            "GetAddress",
            None,
            None,
            self._flags,
            20_000,
            None,
        )
        flags = Gio.DBusConnectionFlags
        self._bus = Gio.DBusConnection.new_for_address_sync(
            reply.unpack()[0], flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
        )
        self._context = GLib.MainContext.default()
        self._roles: dict[int, str] = {}
        self.fixed: dict[Ref, tuple[str, frozenset[str]]] = {}
        """Role and interfaces of objects that were met before: they never change."""

    def ask(self, calls: Iterable[tuple[Ref, str, str, Any]], limit_ms: int) -> list[Any]:
        """The answers to (object, interface, method, arguments), all asked at once; None for those that failed."""
        calls = list(calls)
        answers: list[Any] = [None] * len(calls)
        left = len(calls)

        def done(bus: Any, result: Any, index: int) -> None:
            nonlocal left
            left -= 1
            try:
                answers[index] = bus.call_finish(result).unpack()
            except self._glib.Error:
                answers[index] = None

        for index, ((name, path), interface, method, arguments) in enumerate(calls):
            self._bus.call(name, path, interface, method, arguments, None, self._flags, limit_ms, None, done, index)
        while left:
            self._context.iteration(True)
        return answers

    def get(self, refs: Iterable[Ref], interface: str, name: str, limit_ms: int) -> list[Any]:
        """One property of many objects."""
        arguments = self._glib.Variant("(ss)", (_PREFIX + interface, name))
        return [
            a if a is None else a[0] for a in self.ask(((r, _PROPERTIES, "Get", arguments) for r in refs), limit_ms)
        ]

    def variant(self, kind: str, values: tuple[Any, ...]) -> Any:
        return self._glib.Variant(kind, values)

    def role(self, number: int) -> str:
        """The name of a role, as OSWorld writes it."""
        if number not in self._roles:
            self._roles[number] = (self._role_name(number) or "unknown").strip().replace(" ", "-")
        return self._roles[number]


class Reader:
    """One reading of all applications."""

    def __init__(
        self, bus: Bus, *, showing: bool, most: int, children: int, depth: int, text: int, limit_s: float
    ) -> None:
        self._bus = bus
        self._showing, self._most, self._children, self._depth, self._text = showing, most, children, depth, text
        self._end = time.monotonic() + limit_s
        self._name = bus.variant("(ss)", (_PREFIX + "Accessible", "Name"))
        self._count = bus.variant("(ss)", (_PREFIX + "Accessible", "ChildCount"))
        self._screen = bus.variant("(u)", (0,))
        self.nodes: dict[Ref, Node] = {}
        self.cut = False
        """Whether anything was left out: there was too much, or an application did not answer."""

    def read(self) -> list[Node]:
        """The applications; all objects below them are in `nodes`."""
        listed = self._bus.ask([((REGISTRY, ROOT), _PREFIX + "Accessible", "GetChildren", None)], self._ms())[0]
        roots = [tuple(r) for r in listed[0]] if listed else []
        level = list(roots)
        for depth in range(self._depth + 1):
            level = [r for r in dict.fromkeys(level) if r not in self.nodes and not r[1].endswith("/null")]
            if not level or self._late():
                break
            level = [child for node in self._level(level, depth) for child in node.children]
        self._details()
        return [self.nodes[r] for r in roots if r in self.nodes]

    def _level(self, refs: list[Ref], depth: int) -> list[Node]:
        """The objects of one level that are wanted, with what they say of themselves."""
        kept: list[Node] = []
        for node in self._fetch(refs):
            if self._showing and depth > 0 and not node.shown:
                continue
            if len(self.nodes) >= self._most:
                self.cut = True
                break
            self.nodes[node.ref] = node
            kept.append(node)
        crowded = [n for n in kept if n.count > self._children]
        for node in crowded:  # some say that they have 2^31 children: only the first are asked for
            self.cut = True
            asked = [
                (node.ref, _PREFIX + "Accessible", "GetChildAtIndex", self._bus.variant("(i)", (i,)))
                for i in range(self._children)
            ]
            node.children = [tuple(a[0]) for a in self._bus.ask(asked, self._ms()) if a is not None]
        calm = [n for n in kept if 0 < n.count <= self._children]
        answers = self._bus.ask([(n.ref, _PREFIX + "Accessible", "GetChildren", None) for n in calm], self._ms())
        for node, answer in zip(calm, answers, strict=True):
            node.children = [tuple(r) for r in answer[0]] if answer else []
        return kept

    def _fetch(self, refs: list[Ref]) -> list[Node]:
        """Objects with all that one round can say of them."""
        one = [(_PROPERTIES, "Get", self._name), (_PROPERTIES, "Get", self._count), (_PREFIX + "Accessible", "GetState", None),
               (_PREFIX + "Component", "GetExtents", self._screen)]  # fmt: skip
        calls = [(ref, *call) for ref in refs for call in one]
        if len(self._bus.fixed) > _MOST_FIXED:
            self._bus.fixed.clear()
        new = [ref for ref in refs if ref not in self._bus.fixed]
        calls += [(ref, _PREFIX + "Accessible", method, None) for ref in new for method in ("GetRole", "GetInterfaces")]
        answers = self._bus.ask(calls, self._ms())
        fixed = answers[len(one) * len(refs) :]
        for i, ref in enumerate(new):
            role, interfaces = fixed[2 * i : 2 * i + 2]
            if role is not None and interfaces is not None:
                self._bus.fixed[ref] = (self._bus.role(role[0]), _short(interfaces[0]))
        out: list[Node] = []
        for i, ref in enumerate(refs):
            name, count, states, box = answers[len(one) * i : len(one) * (i + 1)]
            if states is None or ref not in self._bus.fixed:
                self.cut = True
                continue
            role, interfaces = self._bus.fixed[ref]
            node = Node(
                ref, name[0] if name else "", role, _states(states[0]), interfaces, count=count[0] if count else 0
            )
            node.box = tuple(box[0]) if box and node.shown else None
            out.append(node)
        return out

    def _details(self) -> None:
        """Texts and values."""
        nodes = list(self.nodes.values())
        texts = [n for n in nodes if "Text" in n.interfaces and n.role != "label" and (n.shown or not self._showing)]
        counts = self._bus.get((n.ref for n in texts), "Text", "CharacterCount", self._ms())
        full = [(n, min(c, self._text)) for n, c in zip(texts, counts, strict=True) if c]
        asked = [(n.ref, _PREFIX + "Text", "GetText", self._bus.variant("(ii)", (0, c))) for n, c in full]
        for (node, _), answer in zip(full, self._bus.ask(asked, self._ms()), strict=True):
            node.text = answer[0] if answer else ""
        values = [n for n in nodes if n.role in _VALUED and "Value" in n.interfaces]
        for key, name in (("value", "CurrentValue"), ("min", "MinimumValue"), ("max", "MaximumValue")):
            for node, value in zip(
                values, self._bus.get((n.ref for n in values), "Value", name, self._ms()), strict=True
            ):
                if value is not None:
                    node.more.setdefault("val", {})[key] = str(value)
        if not self._showing:
            self._extras(nodes)

    def _extras(self, nodes: list[Node]) -> None:
        """Attributes and actions, which only the whole tree carries."""
        found = self._bus.ask([(n.ref, _PREFIX + "Accessible", "GetAttributes", None) for n in nodes], self._ms())
        for node, answer in zip(nodes, found, strict=True):
            if answer and answer[0]:
                node.more["attr"] = answer[0]
        acting = [n for n in nodes if "Action" in n.interfaces]
        found = self._bus.ask([(n.ref, _PREFIX + "Action", "GetActions", None) for n in acting], self._ms())
        for node, answer in zip(acting, found, strict=True):
            if answer and answer[0]:
                node.more["act"] = {a[0]: a[1] for a in answer[0][:8]}

    def _ms(self) -> int:
        """Longest wait for the next answers."""
        return max(50, min(2000, int((self._end - time.monotonic()) * 1e3)))

    def _late(self) -> bool:
        late = time.monotonic() > self._end
        self.cut = self.cut or late
        return late


def _states(words: Iterable[int]) -> frozenset[str]:
    bits = sum(word << (32 * i) for i, word in enumerate(words))
    return frozenset(name for i, name in enumerate(STATES) if bits >> i & 1)


def _short(interfaces: Iterable[str]) -> frozenset[str]:
    return frozenset(i.removeprefix(_PREFIX) for i in interfaces)
