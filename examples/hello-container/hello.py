import platform


def handler(payload, context):
    name = (payload or {}).get("name", "world")
    return {"hello": name, "python": platform.python_version(), "at": context.execution_id}
