"""Rows of what a server was asked: SGLang's request logs, OpenAI batch files, gateways' JSON lines.

    line -> body of the request -> {"messages", "tools", "sampling"}

What of a line is neither is not looked at: no header, key, user, request id or cache salt gets any further than here.
"""
