"""Greets the name in the payload, and counts how often this process has done so."""

served = 0


def handler(payload, context):
    global served
    served += 1
    name = (payload or {}).get("name", "world")
    print(f"execution {context.execution_id}, {context.remaining_ms():.0f} ms left")
    return {"hello": name, "served": served}
