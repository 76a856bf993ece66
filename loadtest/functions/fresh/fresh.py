def handler(payload, context):
    return payload
