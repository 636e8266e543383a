"""Desktops in virtual machines: QEMU with KVM where it works, with software emulation where not; every start restores a snapshot.

    docker/gui.sh vm DIR  ─▶ DIR: disk.qcow2, vmlinuz, initrd.img, token, state (the machine frozen when its desktop was ready)
    start(): overlay on the disk, `-incoming` the state ─▶ the desktop as it was frozen, in about a second

A machine's network lets nothing out; its guest is reached through one forwarded port of 127.0.0.1. Its keeper, a small process,
ends it when the driver is gone, however that ended. The same figures decide state and start: memory, processors, screen.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claw_envs.errors import ConfigError, SandboxError
from claw_envs.gui.client import Desktop, TcpTransport
from claw_envs.sandbox.owner import run_name

SIZE = (1280, 800)
MEMORY_MB = 768
BOOT_S = 600.0
"""Longest boot under software emulation on a busy machine."""
RESTORE_S = 60.0
_KEEPER = """
import subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
try:
    sys.stdin.buffer.read()
finally:
    process.kill()
    process.wait()
"""
"""Ends the machine when its own stdin ends, that is, when the driver is gone."""
_PROBE_S = 5.0


class Machine:
    """One running virtual machine; `close` is idempotent and ends it."""

    def __init__(self, image: Path, accel: str, *, restore: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{run_name()}-vm-"))
        self._keeper: subprocess.Popen[bytes] | None = None
        try:
            port = _free_port()
            self._qmp_path = str(self.folder / "qmp")
            self._log = self.folder / "log"
            argv = _command(image, self.folder, accel, port, self._qmp_path)
            if restore:
                argv += ["-incoming", f"exec:cat {image / 'state'}"]
            with self._log.open("wb") as log:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _KEEPER, *argv],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.qmp = _Qmp(self._qmp_path, self._alive)
            if restore:
                self._resume()
            token = (image / "token").read_text(encoding="utf-8").strip()
            self.desktop = Desktop(TcpTransport("127.0.0.1", port), token=token)
            self.desktop.wait_ready(RESTORE_S if restore else BOOT_S)
        except BaseException:
            self.close()
            raise

    def freeze(self, state: Path) -> None:
        """The machine as it is now is in `state`; it runs no more."""
        self.qmp.ask("stop")
        self.qmp.ask("migrate_set_parameters", **{"max-bandwidth": 1 << 34})
        self.qmp.ask("migrate", uri=f"exec:cat > {state}")
        end = time.monotonic() + BOOT_S
        while (status := self.qmp.ask("query-migrate").get("status")) not in ("completed", "failed"):
            if time.monotonic() > end:
                raise SandboxError(f"freezing the machine takes too long: {status}")
            time.sleep(0.05)
        if status == "failed":
            raise SandboxError("the machine could not be frozen")

    def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            if hasattr(self, "qmp"):
                self.qmp.close()
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _alive(self) -> None:
        assert self._keeper is not None
        if self._keeper.poll() is not None:
            raise SandboxError(f"QEMU has ended: {self._log.read_text(errors='replace')[-400:].strip()}")

    def _resume(self) -> None:
        end = time.monotonic() + RESTORE_S
        while self.qmp.ask("query-status")["status"] == "inmigrate":
            if time.monotonic() > end:
                raise SandboxError(f"the snapshot was not restored within {RESTORE_S:g} s")
            time.sleep(0.01)
        self.qmp.ask("cont")


class _Qmp:
    """QEMU's monitor: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html"""

    def __init__(self, path: str, alive: Any) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(RESTORE_S)
        end = time.monotonic() + 30.0
        while True:
            try:
                self._sock.connect(path)
                break
            except OSError:
                alive()
                if time.monotonic() > end:
                    self._sock.close()
                    raise SandboxError("QEMU's monitor does not answer") from None
                time.sleep(0.01)
        self._file = self._sock.makefile("rwb")
        self._read()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What a command returns. Raises SandboxError."""
        try:
            self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            self._file.flush()
            while True:
                said = self._read()
                if "error" in said:
                    raise SandboxError(f"QEMU refuses {command}: {said['error'].get('desc')}")
                if "return" in said:
                    return said["return"]
        except OSError as error:
            raise SandboxError(f"QEMU is gone: {error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._sock.close()

    def _read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise SandboxError("QEMU is gone")
        return json.loads(line)


class VmProvider:
    """Virtual machines from one image; `warm` of them are restored ahead. `accel`: "kvm" or "tcg"; None: whichever works."""

    name = "vm"

    def __init__(
        self, *, image: str = "/var/tmp/claw-vm", accel: str | None = None, warm: int = 1, most: int = 4
    ) -> None:
        self._image = Path(image)
        if missing := missing_here(self._image):
            raise ConfigError(f"provider=vm needs {', '.join(missing)}: docker/gui.sh vm {image}")
        self.accel = accel or chosen_accel()
        self.size = SIZE
        self._warm, self._most = warm, most
        self._changed = threading.Condition()
        self._ready: list[Machine] = []
        self._live: set[Machine] = set()
        self._starting = 0
        self._closed = False

    def start(self) -> _Lease:
        """See `Provider.start`."""
        with self._changed:
            if self._closed:
                raise SandboxError("the provider is closed")
            machine = self._ready.pop() if self._ready else None
        machine = machine or self._restored()
        self._top_up()
        return _Lease(machine, self._end)

    def close(self) -> None:
        """See `Provider.close`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._starting == 0, RESTORE_S)
            machines, self._live, self._ready = list(self._live), set(), []
        for machine in machines:
            machine.close()

    def _restored(self) -> Machine:
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or len(self._live) + self._starting < self._most, 600.0):
                raise SandboxError(f"no virtual machine became free; there may be {self._most} at once")
            self._starting += 1
        machine = None
        try:
            machine = Machine(self._image, self.accel, restore=True)
            return machine
        finally:
            with self._changed:
                self._starting -= 1
                if machine is not None:
                    self._live.add(machine)
                self._changed.notify_all()

    def _top_up(self) -> None:
        with self._changed:
            room = len(self._live) + self._starting < self._most
            if self._closed or not room or len(self._ready) + self._starting >= self._warm:
                return
        threading.Thread(target=self._one_more, daemon=True).start()

    def _one_more(self) -> None:
        with contextlib.suppress(SandboxError):
            machine = self._restored()
            with self._changed:
                if not self._closed:
                    self._ready.append(machine)
                    return
            machine.close()

    def _end(self, machine: Machine) -> None:
        machine.close()
        with self._changed:
            self._live.discard(machine)
            self._changed.notify_all()


class _Lease:
    """A virtual machine in the hands of an episode; nobody gets it a second time."""

    def __init__(self, machine: Machine, end: Any) -> None:
        self.desktop = machine.desktop
        self._machine: Machine | None = machine
        self._end = end

    def close(self) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            self._end(machine)


def missing_here(image: Path) -> tuple[str, ...]:
    """What a virtual machine needs and is not there."""
    programs = [p for p in ("qemu-system-x86_64", "qemu-img") if shutil.which(p) is None]
    files = [
        str(image / f) for f in ("disk.qcow2", "vmlinuz", "initrd.img", "state", "token") if not (image / f).is_file()
    ]
    return (*programs, *files[:1])


def chosen_accel() -> str:
    """ "kvm" where it really runs a machine, else "tcg": a /dev/kvm may be there and be of no use."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    argv = [
        "qemu-system-x86_64",
        "-accel",
        "kvm",
        "-machine",
        "q35",
        "-display",
        "none",
        "-no-reboot",
        "-S",
        "-monitor",
        "stdio",
    ]
    try:
        done = subprocess.run(argv, input=b"quit\n", capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "tcg"
    return "kvm" if done.returncode == 0 and not done.stderr else "tcg"


def _command(image: Path, folder: Path, accel: str, port: int, qmp: str) -> list[str]:
    overlay = folder / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str((image / "disk.qcow2").resolve()), str(overlay)],
        check=True, capture_output=True,
    )  # fmt: skip
    return [
        "qemu-system-x86_64", "-accel", accel if accel == "kvm" else "tcg,thread=multi", "-machine", "q35", "-cpu", "max",
        "-smp", "2", "-m", str(MEMORY_MB), "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot",
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"),
        "-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off nokaslr net.ifnames=0",
        "-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe", "-device", "virtio-rng-pci",
        "-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:5000", "-device", "virtio-net-pci,netdev=n,romfile=",
        "-qmp", f"unix:{qmp},server=on,wait=off", "-serial", f"file:{folder / 'console'}",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def freeze(image: Path, accel: str | None = None) -> Iterator[str]:
    """Boots the image until its desktop is ready and freezes it into `state`; yields what happens."""
    (image / "state").unlink(missing_ok=True)
    began = time.monotonic()
    machine = Machine(image, accel or chosen_accel(), restore=False)
    try:
        yield f"booted to a ready desktop in {time.monotonic() - began:.1f} s"
        machine.desktop.settled(quiet_s=0.5, longest_s=30)
        machine.freeze(image / "state")
        yield f"frozen: {(image / 'state').stat().st_size >> 20} MiB"
    finally:
        machine.close()


def main(argv: Sequence[str]) -> int:
    """`python -m claw_envs.gui.vm freeze DIR`."""
    if len(argv) != 2 or argv[0] != "freeze":
        print("usage: python -m claw_envs.gui.vm freeze DIR", file=sys.stderr)
        return 2
    for line in freeze(Path(argv[1])):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
