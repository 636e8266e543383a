"""The server: requests a second and added latency with a fake engine; then, with a real one, what training costs those who talk.

`load` and `latency` speak to a server in a process of its own, whose engine answers at once: all that is measured is the gateway.
`serving` starts a live run of the nano policy twice, once never training and once training all the time, and compares time to
first token; `swap` times the load of new weights inside of a decoding engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, median, report, table

CORRECTIONS = (
    "No, that is too long. Please make it shorter.",
    "Thanks, that is perfect.",
    "No, please use fewer words.",
)
ASKS = (
    "Will here. Homework: why is {a} x {b} = {c}?",
    "Vera wrote {a} x {b} = {c}. Comment on it.",
    "Write feedback for Vera, who found {a} x {b} = {c}.",
)


class Connection:
    """One keep-alive HTTP/1.1 connection, as thin as can be, so that the client is not what is measured."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, body: dict[str, Any]) -> tuple[int, bytes, float]:
        """Status, body, and the time of the first byte of the body. Raises OSError, ValueError where it broke."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(*self._where)
        payload = json.dumps(body).encode()
        host = f"{self._where[0]}:{self._where[1]}"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(payload)}\r\n\r\n"
        self._writer.write(head.encode() + payload)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(lines.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" not in lines:
            length = int(lines.split(b"content-length: ")[1].split(b"\r\n")[0])
            return status, await self._reader.readexactly(length), time.perf_counter()
        parts: list[bytes] = []
        first = 0.0
        while size := int(await self._reader.readline(), 16):
            first = first or time.perf_counter()
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return status, b"".join(parts), first

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def ask(i: int) -> dict[str, Any]:
    """A short request that nobody has made before."""
    return {"model": "claw", "messages": [{"role": "user", "content": f"Request number {i}: how are you?"}]}


async def closed_loop(port: int, connections: int, seconds: float) -> float:
    """Requests a second with every connection always busy."""
    until = time.perf_counter() + seconds
    done = 0

    async def one(c: int) -> None:
        nonlocal done
        connection = Connection("127.0.0.1", port)
        i = c
        while time.perf_counter() < until:
            status, _, _ = await connection.post(ask(i))
            assert status == 200, status
            done += 1
            i += connections
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(one(c) for c in range(connections)))
    return done / (time.perf_counter() - began)


async def open_loop(port: int, rate: float, seconds: float) -> list[float]:
    """Milliseconds from when each request was due to its whole answer; requests come at random times, whatever is still open."""
    rng, latencies = random.Random(0), []
    free: list[Connection] = []

    async def one(i: int, due: float) -> None:
        connection = free.pop() if free else Connection("127.0.0.1", port)
        status, _, _ = await connection.post(ask(10**6 + i))
        latencies.append((time.perf_counter() - due) * 1e3)
        assert status == 200, status
        free.append(connection)

    tasks = []
    due = time.perf_counter() + 0.1
    for i in range(int(rate * seconds)):
        due += rng.expovariate(rate)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(i, due)))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return sorted(latencies)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def share(values: Sequence[float], q: float) -> float:
    """A percentile of sorted values."""
    return values[min(len(values) - 1, int(q * len(values)))]


async def serve_fake() -> None:
    """A server whose engine answers at once; prints its port."""
    from claw_agents.policy import ScriptedPolicy
    from claw_agents.render import MessageRenderer
    from claw_agents.serve import Serving
    from claw_agents.server import Server, ServerConfig
    from claw_agents.session import NullSink, SessionConfig, Sessions
    from claw_envs.messages import assistant

    policy = ScriptedPolicy([assistant("I am fine, and how are you today?")])
    sessions = Sessions(MessageRenderer(), NullSink(), SessionConfig(max_sessions=20_000))
    serving = Serving(Server(ServerConfig(port=0, max_concurrent=10_000, per_user=10_000), policy, sessions))
    await serving.start()
    print(serving.url, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await serving.stop()


@contextlib.contextmanager
def child(*arguments_: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A process that prints a server's address; its port."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments_], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "http://127.0.0.1:" in line:
                yield int(line.split("http://127.0.0.1:")[1].split("/")[0]), process
                break
        else:
            raise SystemExit(f"no server came up:\n{said}")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def gateway(runs: int, seconds: float) -> tuple[list[list[object]], dict[str, Any]]:
    """The fake engine's two rows."""
    rates, cpu, p50, p99 = [], [], [], []
    with child("-m", "benchmarks.gateway", "--serve") as (port, process):
        asyncio.run(closed_loop(port, 32, 1.0))
        for _ in range(runs):
            before = cpu_seconds(process.pid)
            rates.append(asyncio.run(closed_loop(port, 32, seconds)))
            cpu.append((cpu_seconds(process.pid) - before) / (rates[-1] * seconds) * 1e6)
            latencies = asyncio.run(open_loop(port, 500, seconds))
            p50.append(share(latencies, 0.5))
            p99.append(share(latencies, 0.99))
    rows: list[list[object]] = [
        ["requests/s, 32 connections", median(rates), "≥ 2,000"],
        ["the server's CPU microseconds a request", median(cpu), "≤ 500, for 2,000/s on a core of its own"],
        ["added ms at 500/s, p50", median(p50), "≤ 3"],
        ["added ms at 500/s, p99", median(p99), "≤ 20"],
    ]
    return rows, {"requests_per_s": rates, "cpu_us": cpu, "added_p50_ms": p50, "added_p99_ms": p99}


async def talk(port: int, requests: int, at_once: int) -> tuple[list[float], int, set[int]]:
    """Seconds to first token of streamed conversations of two turns, how many failed, and the versions that answered."""
    firsts: list[float] = []
    versions: set[int] = set()
    failed = 0
    left = iter(range(requests // 2))

    async def one(connection: Connection, messages: list[dict[str, str]]) -> str:
        nonlocal failed
        body = {"model": "claw", "messages": messages, "stream": True, "max_tokens": 32}
        began = time.perf_counter()
        status, said, first = await connection.post(body)
        events = [json.loads(e[6:]) for e in said.decode().split("\n\n") if e.startswith("data: {")]
        if status != 200 or any("error" in e for e in events) or "[DONE]" not in said.decode():
            failed += 1
            return ""
        firsts.append(first - began)
        versions.add(next(e["policy_version"] for e in reversed(events) if "policy_version" in e))
        return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])

    async def person(number: int) -> None:
        connection, rng = Connection("127.0.0.1", port), random.Random(number)
        for i in left:
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            messages = [{"role": "user", "content": ASKS[i % len(ASKS)].format(a=a, b=b, c=a * b)}]
            reply = await one(connection, messages)
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": rng.choice(CORRECTIONS)}]
            await one(connection, messages)
        connection.close()

    await asyncio.gather(*(person(n) for n in range(at_once)))
    return sorted(firsts), failed, versions


def serving(requests: int, at_once: int, words: Sequence[str]) -> tuple[list[list[object]], dict[str, Any]]:
    """The nano policy without training, then training as often as it can."""
    out: dict[str, Any] = {}
    for name, batch in (("still", 10**6), ("training", 8)):
        with tempfile.TemporaryDirectory() as runs:
            live = [
                "-m", "claw_train", "+env=live", "+method=hybrid", "live.server.port=0", "view=plain", f"runs={runs}",
                f"loop.batch_groups={batch}", "loop.checkpoint_every=50", *words,
            ]  # fmt: skip
            with child(*live) as (port, process):
                asyncio.run(talk(port, 32, at_once))
                firsts, failed, versions = asyncio.run(talk(port, requests, at_once))
                process.stdout.close() if process.stdout else None
        out[name] = {"p50_ms": 1e3 * share(firsts, 0.5), "p99_ms": 1e3 * share(firsts, 0.99), "failed": failed,
                     "answered": len(firsts), "versions": len(versions)}  # fmt: skip
    still, training = out["still"], out["training"]
    rows: list[list[object]] = [
        ["time to first token without training, p50 / p99 ms", f"{still['p50_ms']:.1f} / {still['p99_ms']:.1f}", ""],
        ["the same while training, p50 / p99 ms", f"{training['p50_ms']:.1f} / {training['p99_ms']:.1f}", ""],
        ["ratio of the p99", training["p99_ms"] / still["p99_ms"], "≤ 2"],
        [f"failed of {training['answered'] + training['failed']} while training", training["failed"], "0"],
        ["versions that answered meanwhile", training["versions"], ""],
    ]
    return rows, out


def swap(count: int, folder: Path) -> tuple[list[list[object]], dict[str, Any]]:
    """How long generation stands still while new weights are loaded."""
    from safetensors.torch import load_file, save_file

    from claw_agents.engines.config import EngineConfig
    from claw_agents.engines.torch import TorchEngine
    from claw_agents.policy import SamplingParams

    engine = TorchEngine(folder, EngineConfig())
    weights = load_file(folder / "model.safetensors")
    stops = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.safetensors"
        save_file(weights, path)
        for i in range(count):
            for r in range(8):
                engine.handle(("generate", i * 100 + r, tuple(range(300, 340)), SamplingParams(max_tokens=16), False))
            for _ in range(4):
                engine.step()
            began = time.perf_counter()
            engine.handle(("load", i * 100 + 99, path, i + 1))
            stops.append((time.perf_counter() - began) * 1e3)
            while engine.busy:
                engine.step()
    stops.sort()
    rows: list[list[object]] = [
        ["a swap stops generation, ms, p50", share(stops, 0.5), "≤ 20"],
        ["a swap stops generation, ms, longest", stops[-1], "≤ 20"],
    ]
    return rows, {"swap_ms": stops}


def main() -> None:
    """The command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--serve", action="store_true", help="only the server with the fake engine (used by the benchmark)"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement with the fake engine")
    parser.add_argument("--requests", type=int, default=10_000, help="streamed requests to the nano policy; 0: none")
    parser.add_argument("--at-once", type=int, default=4, help="people who talk to the nano policy at the same time")
    parser.add_argument("--policy", type=Path, help="a model folder to serve instead of the chat world's warm start")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve_fake())
        return
    parts: list[Callable[[], tuple[list[list[object]], dict[str, Any]]]] = [lambda: gateway(given.runs, given.seconds)]
    if given.policy is not None:
        parts.append(lambda: swap(50, given.policy))
    if given.requests:
        words = ["policy=hf", f"policy.path={given.policy}"] if given.policy else []
        parts.append(lambda: serving(given.requests, given.at_once, words))
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    for part in parts:
        more, numbers = part()
        rows += more
        figures |= numbers
    report("gateway", table(["what", "figure", "goal"], rows), figures, given.json)


if __name__ == "__main__":
    main()
