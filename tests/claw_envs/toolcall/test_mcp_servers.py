"""MCP servers as tools: a real server on stdin and stdout, written by the test, that also fails, hangs and dies."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from claw_envs.errors import ConfigError
from claw_envs.messages import ToolCall, assistant
from claw_envs.sandbox import Sandboxes
from claw_envs.toolcall.env import ToolCallEnv
from claw_envs.toolcall.mcp_servers import Servers
from tests.claw_envs.toolcall.conftest import code

pytest.importorskip("mcp")
pytestmark = pytest.mark.slow

SERVER = '''
import os, sys, time
from mcp.server import MCPServer

server = MCPServer("test")
kept = []

@server.tool()
def double(x: int) -> int:
    """Twice x."""
    return 2 * x

@server.tool()
def keep(text: str) -> str:
    """Keeps a text."""
    kept.append(text)
    return " ".join(kept)

@server.tool()
def fail(text: str) -> str:
    """Fails."""
    raise ValueError(text)

@server.tool()
def much() -> str:
    """A long text."""
    return "x" * 100_000

@server.tool()
def hang() -> str:
    """Never answers."""
    time.sleep(1000)
    return ""

@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)

server.run("stdio")
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(SERVER)
    return f"{sys.executable} {path}"


@pytest.fixture
def servers(command: str) -> Iterator[Servers]:
    made = Servers([command], timeout_s=30.0, output_chars=500)
    yield made
    made.close()


def test_tools_and_calls(servers: Servers):
    assert [t.name for t in servers.tools] == ["double", "keep", "fail", "much", "hang", "die"]
    double = servers.tools[0]
    assert double.description == "Twice x."
    assert double.parameters["properties"]["x"]["type"] == "integer"
    assert servers.call("double", {"x": 4}) == "8"
    servers.call("keep", {"text": "a"})
    assert servers.call("keep", {"text": "b"}) == "a b"
    assert servers.call("fail", {"text": "oh"}).startswith("Error: ")
    assert servers.call("double", {"x": "four"}).startswith("Error: ")
    assert len(servers.call("much", {})) < 600


def test_a_server_that_dies_is_started_again(servers: Servers):
    servers.call("keep", {"text": "a"})
    assert servers.call("die", {}) == "Error: the server of die died in the call; it is started again at the next one."
    assert servers.call("keep", {"text": "b"}) == "b"


def test_a_call_that_hangs_is_told(command: str):
    servers = Servers([command], timeout_s=1.0, output_chars=500)
    assert servers.call("hang", {}) == "Error: hang timed out after 1 seconds."
    servers.close()
    servers.close()


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        (["/no/such/program"], "is no MCP server that starts here"),
        (["sleep 0"], "is no MCP server that starts here"),
        (["http://127.0.0.1:1/mcp"], "is no command line"),
        ([""], "is no command line"),
    ],
)
def test_what_is_no_server(commands: list[str], why: str):
    with pytest.raises(ConfigError, match=why):
        Servers(commands, timeout_s=1.0, output_chars=100)


def test_in_an_episode(command: str, sandboxes: Sandboxes):
    env = ToolCallEnv(split="heldout", sandbox=sandboxes, mcp=[command])
    try:
        env.reset(seed=0)
        said = env.step(assistant("", ToolCall("double", {"x": 21}), ToolCall("double", {"x": "2"}), code("1 + 1")))[0]
        assert [m.text for m in said] == ["42", "Error: double.x is '2'; it must be of type integer.", "2"]
    finally:
        env.close()


def test_two_servers_with_one_name(command: str):
    with pytest.raises(ConfigError, match="two MCP servers have a tool called 'double'"):
        Servers([command, command], timeout_s=1.0, output_chars=100)
