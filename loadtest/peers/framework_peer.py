"""The same handler below functions-framework, as its own command line starts it (gunicorn, one process, threads)."""


def handler(request):
    return request.get_json()
