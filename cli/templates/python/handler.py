"""{{name}}: greets whoever the payload names.

`handler` is called with the payload (any JSON) and a context, and what it returns (any JSON) is the result. An exception is a
failure, with its stack. What is printed is shown as output. This module is loaded once; then its process serves call after call
and waits `keep_warm` seconds for the next, so clients and caches belong up here.
"""


def handler(payload, context):
    name = payload.get("name", "world") if isinstance(payload, dict) else payload or "world"
    print(f"{context.execution_id} greets {name}")
    return {"hello": name, "attempt": context.attempt}
