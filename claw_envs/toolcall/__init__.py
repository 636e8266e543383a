"""Questions with checkable answers, and tools to find them: a Python interpreter, functions, MCP servers."""
