import os
def read(n):
    got = b""
    while len(got) < n:
        more = os.read(3, n - len(got))
        if not more:
            os._exit(0)
        got += more
    return got
exec(compile(read(int.from_bytes(read(4), "big"))[1:], "<flux>", "exec"), {"__name__": "flux_worker"})
