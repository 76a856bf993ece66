"""What Python programs do every day, each on a line of its own when it worked."""
import asyncio, ctypes, hashlib, json, mmap, multiprocessing, os, select, signal, socket, sqlite3, ssl, subprocess, sys
import tempfile, threading, time, zoneinfo
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor


def does(what):
    print(what, flush=True)


def square(n):
    return n * n


def main():
    results = []
    threads = [threading.Thread(target=lambda: results.append(1)) for _ in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(square, range(10))) == 285 and len(results) == 8
    does("threads")

    assert subprocess.run(["/bin/sh", "-c", "cat; exit 3"], input=b"x", capture_output=True).returncode == 3
    assert subprocess.check_output("echo $0", shell=True, start_new_session=True) == b"/bin/sh\n"
    does("subprocesses")

    if os.fork() == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    with ProcessPoolExecutor(2) as pool:
        assert list(pool.map(square, [3, 4])) == [9, 16]
    ctx = multiprocessing.get_context("spawn")
    queue = ctx.Queue()
    queue.put(5)
    assert queue.get() == 5
    does("multiprocessing")

    async def talk():
        async def echo(reader, writer):
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        server.close()
        child = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=subprocess.PIPE)
        assert (await child.communicate())[0] == b"hi\n"
        assert await asyncio.to_thread(square, 5) == 25

    asyncio.run(talk())
    does("asyncio")

    with tempfile.TemporaryDirectory() as directory:
        db = sqlite3.connect(os.path.join(directory, "db"))
        db.execute("pragma journal_mode=wal")
        db.execute("create table t (n)")
        with db:
            db.executemany("insert into t values (?)", [(n,) for n in range(100)])
        assert db.execute("select sum(n) from t").fetchone() == (4950,)
        path = os.path.join(directory, "s")
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        unix.listen()
        socket.socket(socket.AF_UNIX).connect(path)
        with open(os.path.join(directory, "m"), "w+b") as file:
            file.truncate(4096)
            mapped = mmap.mmap(file.fileno(), 4096)
            mapped[:2] = b"ok"
            assert file.read(2) == b"ok"
    does("sqlite, sockets and maps in TMPDIR")

    assert socket.getaddrinfo("localhost", 80) and socket.if_nameindex()
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    six.close()
    ssl.create_default_context()
    does("names")

    fired = []
    signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not fired:
        signal.pause()
    poll = select.epoll()
    read, write = os.pipe()
    poll.register(read, select.EPOLLIN)
    os.write(write, b"x")
    assert poll.poll(1)
    os.memfd_create("m"), os.pidfd_open(os.getpid()), os.eventfd(0)
    does("signals and polls")

    libc = ctypes.CDLL(None)
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda a, b: 0)
    libc.qsort((ctypes.c_int * 2)(2, 1), 2, 4, callback)
    does("ctypes")

    hashlib.scrypt(b"x", salt=b"y", n=2, r=1, p=1)
    json.dumps({"pid": os.getpid(), "home": os.path.expanduser("~")})
    os.nice(1), os.sched_getaffinity(0), os.getloadavg(), time.sleep(0.001)
    import resource, getpass, locale
    resource.getrusage(resource.RUSAGE_SELF), getpass.getuser(), locale.setlocale(locale.LC_ALL, "C")
    does("the rest")


if __name__ == "__main__":
    main()
