"""Tools of MCP servers: of one in this process, and of a real one over stdio."""

import asyncio
import sys
import time
from pathlib import Path

import pytest
from mcp import StdioServerParameters
from mcp.server import MCPServer

from k2lab.agent.calling import Done, Job, perform_all
from k2lab.agent.mcp import McpTools
from k2lab.agent.tools import call
from k2lab.engine.session import Halted
from k2lab.errors import ToolError

SERVER = '''
import os, sys
from mcp.server import MCPServer

server = MCPServer("real")

@server.tool()
def whereami() -> str:
    """The process that answers."""
    return str(os.getpid())

@server.tool()
def double(n: int) -> int:
    """Twice as much."""
    return 2 * n

server.run("stdio")
'''


def local() -> MCPServer:
    server = MCPServer("local")

    @server.tool()
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    @server.tool()
    def fail() -> str:
        """Always fails."""
        raise ValueError("the well is dry")

    @server.tool()
    async def slow() -> str:
        """Takes its time."""
        import asyncio

        await asyncio.sleep(30)
        return "late"

    @server.tool(name="has space")
    def odd() -> str:
        """A name that cannot stand in a call id."""
        return ""

    return server


def named(server: MCPServer, *names: str) -> MCPServer:
    for each in {"add", "fail", "slow", "has space"} - set(names):
        server.remove_tool(each)
    return server


def test_tools_of_a_server_in_this_process_are_called() -> None:
    with McpTools(named(local(), "add", "fail"), reads=["add"], prefix="my_") as server:
        add, fail = sorted(server.tools, key=lambda each: each.name)
        assert (add.name, add.description, add.effect) == ("my_add", "The sum.", "reads")
        assert (fail.effect, fail.trusted, add.trusted) == ("writes", False, False)
        assert call(add, '{"a": 2, "b": 3}').content == "5"
        assert "required property" in call(add, '{"a": 2}').content  # checked here already
        failed = call(fail, "{}")
        assert not failed.ok and failed.content.startswith("error: Error executing tool fail")
    assert server.tools == ()
    assert "closed" in call(add, '{"a": 2, "b": 3}').content


def test_a_name_that_cannot_stand_in_a_call_is_refused() -> None:
    with pytest.raises(ToolError, match="has space"), McpTools(named(local(), "has space")):
        pass


def test_a_call_can_be_given_up() -> None:
    with McpTools(named(local(), "slow")) as server:
        began = time.monotonic()

        def check() -> None:
            if time.monotonic() - began > 0.3:
                raise Halted

        with pytest.raises(Halted):
            list(perform_all([Job("0.0", server.tools[0], {})], check, lambda _: None))
        assert time.monotonic() - began < 0.6


def test_a_real_server_over_stdio_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    parameters = StdioServerParameters(command=sys.executable, args=[str(path)])
    with McpTools(parameters, reads=["double", "whereami"]) as server:
        by_name = {each.name: each for each in server.tools}
        process = int(call(by_name["whereami"], "{}").content)
        assert Path(f"/proc/{process}").exists()
        jobs = [Job(f"0.{n}", by_name["double"], {"n": n}) for n in range(5)]
        done = [each for each in perform_all(jobs, lambda: None, lambda _: None)
                if isinstance(each, Done)]  # fmt: skip
        assert {each.key: each.outcome.content for each in done} == {
            f"0.{n}": str(2 * n) for n in range(5)
        }
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_a_server_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "server.py"
    path.write_text("print('no server')")
    parameters = StdioServerParameters(command=sys.executable, args=[str(path)])
    with pytest.raises(ToolError, match="cannot be reached"), McpTools(parameters):
        pass


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Silent:
        async def __aenter__(self) -> None:
            try:
                await asyncio.sleep(30)
            finally:
                ended.append("given up")  # here the SDK ends the server's process

        async def __aexit__(self, *error: object) -> None:
            ended.append("left")

    monkeypatch.setattr("k2lab.agent.mcp._client", lambda server: Silent())
    monkeypatch.setattr("k2lab.agent.mcp.CONNECT", 0.2)
    server = McpTools(None)
    with pytest.raises(ToolError, match="cannot be reached"), server:
        pass
    assert ended == ["given up"]
    assert not server._thread.is_alive()
