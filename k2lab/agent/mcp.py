"""Tools of MCP servers, by the official SDK: in this process, as a subprocess, or by URL.

    with McpTools(StdioServerParameters(command="my-server")) as server:
        lab.run(question, tools=server.tools)

The SDK is asynchronous and the loop is not, so the connection lives on a thread of its own. What a
server says about its tools is not believed: a call counts as one that changes the world and its
result as untrusted, unless the person says otherwise (`reads`). Names that cannot stand in a call
id are refused rather than changed. Not here: resources and prompts of servers.
Source: the Model Context Protocol; mcp 2.3.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from k2lab.agent.calling import POLL, cancellation
from k2lab.agent.tools import TIMEOUT, Tool
from k2lab.errors import MissingError, ToolError

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

CONNECT = 30.0  # seconds until a server has answered for the first time
Value = TypeVar("Value")


class McpTools:
    """A connection to one server; `tools` are there while the `with` block is open."""

    def __init__(
        self,
        server: Any,
        *,
        reads: Collection[str] = (),
        prefix: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        """`server` is what `mcp.Client` takes; `reads` names tools that change nothing.

        `prefix` stands before each name, so that two servers may have tools of the same name.
        """
        self._server, self._reads, self._prefix = server, frozenset(reads), prefix
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None
        self._end: Callable[[], object] = lambda: None  # of the connection; on its own thread
        self.tools: tuple[Tool, ...] = ()

    def __enter__(self) -> Self:
        client = _client(self._server)
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(client, ready)), name="k2lab-mcp", daemon=True
        )
        self._thread.start()
        try:
            ready.result(CONNECT)
        except BaseException as error:
            self._leave()
            if not isinstance(error, Exception):  # the notebook's interrupt
                raise
            cause = _cause(error)
            if isinstance(cause, ToolError):
                raise cause from error
            raise ToolError(
                f"The MCP server cannot be reached: {str(cause) or type(cause).__name__}.",
                expected="a server that answers and lists its tools.",
                mend="Start it by hand and look at what it says.",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Close the connection, and with it a subprocess; wait for both."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(CONNECT)
        self.tools = ()

    async def _live(self, client: "Client", ready: "Future[None]") -> None:
        """The thread's whole life: connect, list, and stay until it is closed."""
        self._loop, closing = asyncio.get_running_loop(), asyncio.Event()
        if (task := asyncio.current_task()) is not None:
            self._end = task.cancel  # while it connects
        try:
            async with client:
                self._client = client
                self.tools = tuple([self._tool(each) async for each in _listed(client)])
                self._end = closing.set
                ready.set_result(None)
                await closing.wait()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            if not ready.done():
                ready.set_exception(error)

    def _tool(self, described: Any) -> Tool:
        name = described.name

        def ask(**arguments: Any) -> str:
            return self._ask(name, arguments)

        return Tool(
            f"{self._prefix}{name}",
            described.description or "",
            dict(described.input_schema),
            ask,
            effect="reads" if name in self._reads else "writes",
            timeout=self._timeout,
        )

    def _ask(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result as text; raises where the server says that the call failed."""
        if self._client is None or self._loop is None or self._loop.is_closed():
            raise ConnectionError("the connection to the MCP server is closed")
        call = self._client.call_tool(name, dict(arguments), read_timeout_seconds=self._timeout)
        result = self._wait(call)
        text = _text(result)
        if result.is_error:
            raise ToolError(
                text or "the server says that the call failed",
                expected="a result.",
                mend="Call it with other arguments.",
            )
        return text

    def _wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run on the connection's thread; given up together with the call."""
        assert self._loop is not None
        future, mine = asyncio.run_coroutine_threadsafe(work, self._loop), cancellation()
        while True:
            try:
                return future.result(POLL)
            except NotYet:
                if future.done():
                    raise
                if mine.cancelled:
                    future.cancel()
                    raise


def _cause(error: BaseException) -> BaseException:
    """The error itself, out of the groups that task groups wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _listed(client: "Client") -> Any:
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        for each in page.tools:
            yield each
        cursor = page.next_cursor
        if cursor is None:
            return


def _text(result: "CallToolResult") -> str:
    """All that can be read of a result; other parts are named."""
    parts = []
    for part in result.content:
        text = getattr(part, "text", None)
        parts.append(text if isinstance(text, str) else f"[{part.type}, which cannot be read here]")
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(parts)


def _client(server: Any) -> "Client":
    try:
        from mcp import Client
    except ImportError as error:
        raise MissingError(
            "The MCP SDK is not installed.",
            expected="the optional part for MCP servers.",
            mend="Install it with `pip install 'k2lab[mcp]'`.",
        ) from error
    make: Callable[..., Client] = Client
    return make(server)
