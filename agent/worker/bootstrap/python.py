# Serves a Flux function's invocations, one after another, on descriptor 3. See agent/worker for the frames.
#
# It imports as little as it can: each module is a part of every cold start.
import contextvars
import json
import os
import resource
import sys
import time

CHANNEL = 3
PROTOCOL = 2
HELLO, READY, FAILED, RESULT, ERROR, OVER = 16, 17, 18, 19, 20, 21
RESEED = 4
RESULT_LIMIT = 16 * 1024 * 1024
# How long a thread that is about to end is waited for before it counts as left.
SETTLE_TRIES, SETTLE_S = 5, 0.001

ME = os.getpid()
FOLDER = os.getcwd()
TMPDIR = os.environ.get("TMPDIR")
STDOUT, STDERR = sys.stdout, sys.stderr
# The number of the invocation in whose course something was begun; a callback of an event loop keeps it.
INVOCATION = contextvars.ContextVar("flux invocation", default=None)
current = 0
dropped = 0
write_to = os.write
encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def read_exactly(size):
    got = bytearray()
    while len(got) < size:
        more = os.read(CHANNEL, min(size - len(got), 1048576))
        if not more:
            os._exit(0)
        got += more
    return bytes(got)


def receive_one():
    """Not a byte more than one frame: what follows may be for another process."""
    body = read_exactly(int.from_bytes(read_exactly(4), "big"))
    return body[0], body[1:]


def send(kind, body):
    rest = (len(body) + 1).to_bytes(4, "big") + bytes((kind,)) + body
    while rest:
        rest = rest[write_to(CHANNEL, rest) :]


class Channel:
    def __init__(self):
        self.buffer = bytearray()

    def _fill(self, size):
        while len(self.buffer) < size:
            more = os.read(CHANNEL, min(max(size - len(self.buffer), 65536), 1048576))
            if not more:
                os._exit(0)
            self.buffer += more

    def receive(self):
        self._fill(4)
        end = 4 + int.from_bytes(self.buffer[:4], "big")
        self._fill(end)
        kind = self.buffer[4]
        with memoryview(self.buffer) as view:
            body = bytes(view[5:end])
        del self.buffer[:end]
        return kind, body


def counts(of=None):
    """What a callback prints that an earlier invocation left is nobody's any more."""
    began_in = INVOCATION.get() if of is None else of.get(INVOCATION)
    return began_in is None or began_in == current


def drop(data):
    global dropped
    dropped += len(data.encode(errors="replace") if isinstance(data, str) else data)
    return len(data)


def guard_writes():
    def guarded(write):
        return lambda data: write(data) if counts() else drop(data)

    for stream in (STDOUT, STDERR):
        stream.buffer.write = guarded(stream.buffer.write)
        stream.write = guarded(stream.write)
    os.write = lambda fd, data: write_to(fd, data) if fd not in (1, 2) or counts() else drop(data)


def guard_exceptions(loop, context):
    """The loop says what a callback raised in nobody's context: the callback's own is asked."""
    of = getattr(context.get("handle"), "_context", None)
    if of is None or counts(of):
        loop.default_exception_handler(context)


class Context:
    """What a handler is told about its invocation."""

    __slots__ = ("execution_id", "function", "version", "attempt", "deadline", "args", "traceparent")

    def __init__(self, call):
        self.execution_id = call["execution_id"]
        self.function = call["function"]
        self.version = call["version"]
        self.attempt = call["attempt"]
        # Seconds since the epoch; None is without limit.
        self.deadline = call["deadline_ms"] / 1000 if call["deadline_ms"] is not None else None
        self.args = call["args"]
        self.traceparent = call["traceparent"]

    def remaining_ms(self):
        """Milliseconds until the deadline; None is without limit."""
        return None if self.deadline is None else max(0.0, (self.deadline - time.time()) * 1000)


def load(entry):
    """The handler, or what is wrong with its name."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    path = next((file for file in entry["files"] if os.path.isfile(file)), None)
    if path is None:
        raise LookupError("the archive has no file " + " or ".join("`%s`" % file for file in entry["files"]))
    name = path[: -len("/__init__.py")] if path.endswith("/__init__.py") else path[: -len(".py")]
    name = name.replace("/", ".")
    import importlib

    if name in sys.modules:
        # A file with the name of a module that is loaded already, such as `types.py`.
        import importlib.util

        spec = importlib.util.spec_from_file_location(name, os.path.join(folder, path))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    found = getattr(module, entry["function"], None)
    if not callable(found):
        what = "no function `%s`" if found is None else "`%s`, which cannot be called"
        raise LookupError(("`%s` has " + what) % (path, entry["function"]))
    return found


def fault(error, skip):
    """An exception as type, message and stack, without the frames of this file."""
    import traceback

    at = error.__traceback__
    while skip and at is not None:
        skip, at = skip - 1, at.tb_next
    try:
        message = str(error)
    except Exception:
        message = "an exception that cannot be printed"
    stack = "".join(traceback.format_exception(type(error), error, at))
    return {"type": type(error).__name__[:256], "message": message[:8192], "stack": stack[-32768:]}


def as_json(value):
    return json.dumps(value).encode()


def payload_of(body):
    if not body:
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return body
    try:
        return json.loads(text)
    except ValueError:
        return text


LOOP = None


def run_to_end(coroutine):
    """An `async def` handler. One loop for all invocations, so that what belongs to a loop can be kept in globals; tasks
    that the handler left are cancelled, as `asyncio.run` does. Its timers and readers stay, and are not heard."""
    global LOOP
    import asyncio

    if LOOP is None:
        LOOP = asyncio.new_event_loop()
        asyncio.set_event_loop(LOOP)
        LOOP.set_exception_handler(guard_exceptions)
    try:
        return LOOP.run_until_complete(coroutine)
    finally:
        left = asyncio.all_tasks(LOOP)
        if left:
            for task in left:
                task.cancel()
            LOOP.run_until_complete(asyncio.gather(*left, return_exceptions=True))


def named_threads():
    threading = sys.modules.get("threading")
    return {thread.ident: thread for thread in threading.enumerate()} if threading else {}


def is_still(thread, known, named):
    """Whether a number means the thread that it meant at first: one that ended leaves its number to the next."""
    return thread in known and known[thread] in (None, named.get(thread))


def threads():
    named = named_threads()
    return {thread: named.get(thread) for thread in sys._current_frames()}


def forget_ended(known):
    if len(known) > 1:
        now, named = sys._current_frames(), named_threads()
        for thread in [thread for thread in known if thread not in now or not is_still(thread, known, named)]:
            del known[thread]


def threads_left(known):
    """Threads that began since the handler was loaded and do something. Idle ones of a pool do nothing."""
    frames = sys._current_frames()
    if len(frames) == 1:
        return 0
    left, named = 0, named_threads()
    for thread, frame in frames.items():
        code = frame.f_code
        idle = code.co_name == "_worker" and code.co_filename.endswith("concurrent/futures/thread.py")
        left += not idle and not is_still(thread, known, named)
    return left


def restore():
    """What belongs to the process and a handler may have changed: where it stands, and the one timer that would end it. What
    it prints to and has closed is closed for the agent too, who then starts another one."""
    try:
        os.chdir(FOLDER)
        signal = sys.modules.get("signal")
        if signal is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, stream in ((1, STDOUT), (2, STDERR)):
            if stream.closed:
                os.close(number)
    except Exception:
        pass


def flush():
    for stream in (STDOUT, STDERR, sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def used(began_ns, known):
    # A child that was forked for one invocation takes its threads with it.
    left = 0 if known is None else threads_left(known)
    for _ in range(SETTLE_TRIES):
        if not left:
            break
        time.sleep(SETTLE_S)
        left = threads_left(known)
    cpu_us = (time.process_time_ns() - began_ns) // 1000
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return b"".join(part.to_bytes(size, "big") for part, size in ((cpu_us, 8), (peak_bytes, 8), (left, 4), (dropped, 8)))


def leave(error):
    """`sys.exit` in a handler ends the process, with the status that it asks for."""
    flush()
    code = error.code
    if code is None:
        os._exit(0)
    if not isinstance(code, int):
        write_to(2, (str(code) + "\n").encode(errors="replace"))
        code = 1
    os._exit(code & 0xFF)


def invoke(handler, body, known, state=None):
    size = int.from_bytes(body[:4], "big")
    call = json.loads(body[4 : 4 + size])
    if known is not None:
        forget_ended(known)
    global current, dropped
    current, dropped = current + 1, 0
    INVOCATION.set(current)
    began_ns = time.process_time_ns()
    kind = RESULT
    try:
        value = handler(payload_of(body[4 + size :]), Context(call))
        if hasattr(value, "__await__"):
            value = run_to_end(value)
        try:
            answer = encode(value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            kind, answer = ERROR, as_json(
                {
                    "type": type(error).__name__,
                    "message": "the handler's return value is not JSON: %s" % error,
                    "stack": "",
                }
            )
        if len(answer) > RESULT_LIMIT:
            message = "the handler's return value has %d bytes as JSON; at most %d are taken" % (len(answer), RESULT_LIMIT)
            kind, answer = ERROR, as_json({"type": "ResultTooLarge", "message": message, "stack": ""})
    except SystemExit as error:
        leave(error)
    except BaseException as error:
        kind, answer = ERROR, as_json(fault(error, 1))
    if os.getpid() != ME:
        # A fork of the handler's that came out of it: one answer is enough.
        os._exit(0)
    if state is None:
        restore()
        flush()
        send(kind, used(began_ns, known) + answer)
    else:
        flush()
        state[0] = ANSWERS
        send(kind, used(began_ns, known) + answer)
        state[0] = ANSWERED


def reseed(seed):
    """This process may be the clone of another: both would draw the same numbers."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed(int.from_bytes(seed[:4], "big"))


def main():
    os.set_inheritable(CHANNEL, False)
    for stream in (STDOUT, STDERR):
        # Text waits for nothing in between: what one callback prints is not flushed, and judged, in another's course.
        stream.reconfigure(line_buffering=True, write_through=True, errors="backslashreplace")
    version = "%d.%d.%d" % sys.version_info[:3]
    send(HELLO, PROTOCOL.to_bytes(2, "big") + version.encode())
    entry = json.loads(receive_one()[1])
    fresh = entry.get("fresh", False)
    if not fresh:
        guard_writes()
    try:
        handler = load(entry)
    except SystemExit as error:
        leave(error)
    except LookupError as error:
        # An exception of the module's own that looks like ours is its own.
        missing = error.__traceback__.tb_next is not None and error.__traceback__.tb_next.tb_next is None
        flush()
        send(FAILED, as_json({**fault(error, 2), "missing": missing}))
        os._exit(1)
    except BaseException as error:
        flush()
        send(FAILED, as_json(fault(error, 2)))
        os._exit(1)
    flush()
    if fresh:
        import _signal as signals

        try:
            why_not = why_not_fork(signals)
        except OSError as error:
            why_not = "what it holds cannot be looked at (%s)" % error
        send(READY, (why_not or "").encode(errors="replace"))
        if why_not is None:
            serve_by_forks(signals, handler)
    else:
        send(READY, b"")
    known = threads()
    channel = Channel()
    while True:
        kind, body = channel.receive()
        if kind == RESEED:
            reseed(body)
        else:
            invoke(handler, body, known)


main()
