# In front of python.py where a function says `fresh: true`: this process loads the handler and never calls it. Each
# invocation is served by a child that was forked for it, and the agent resets the slot in between.
WAITS, READ, ANSWERS, ANSWERED = range(4)


def read_status(name, field):
    with open("/proc/self/" + name) as status:
        return next((line.split()[1] for line in status if line.startswith(field)), "0")


def native_threads():
    return int(read_status("status", "Threads:"))


def ends_its_threads():
    """A library that knows of forks (OpenBLAS does) ends its threads for one, and begins them anew where it needs them."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return native_threads() == 1


def emptied_folders():
    """What calls write to, and the next one finds empty. What is open there, or stands there, would keep the one of before."""
    named = {TMPDIR, "/tmp"} if os.getppid() == 0 else {TMPDIR}
    return ["/dev/shm"] + [os.path.realpath(folder) for folder in named if folder]


def open_files():
    """The regular files that are open, with their positions, which a child shares with the next one; and what else is."""
    positions, other = [], None
    emptied = tuple(emptied_folders())
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            target = os.readlink("/proc/self/fd/" + name)
        except OSError:
            # The list itself.
            continue
        is_emptied = target in emptied or target.startswith(tuple(folder + "/" for folder in emptied))
        if number <= CHANNEL or target.startswith("/dev/") and not is_emptied:
            continue
        if target.startswith("/"):
            flags = int(read_status("fdinfo/" + name, "flags:"), 8)
            if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_PATH:
                other = "a file is open for writing (`%s`)" % target
            elif is_emptied:
                other = "`%s` is open, which each call is to find empty" % target
            elif not flags & os.O_PATH:
                positions.append((number, os.lseek(number, 0, os.SEEK_CUR)))
        elif target.startswith("socket:"):
            other = "a socket is open (descriptor %d)" % number
        else:
            other = "`%s` is open (descriptor %d)" % (target, number)
    return positions, other


def has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def is_shared(line):
    permissions = line.split(None, 2)[1]
    return permissions[1] == "w" and permissions[3] == "s"


def why_not_fork(signals):
    """What a child would lack of the loaded module's, or share with the next one; `None` where that is nothing."""
    threads = len(sys._current_frames()) - 1
    if threads:
        return "%d thread%s it began %s" % (threads, "s that" if threads > 1 else " that", "run" if threads > 1 else "runs")
    if has_children():
        return "a process that it began is there"
    in_slot = os.getppid() == 0
    if in_slot and any(name.isdigit() and int(name) not in (1, ME) for name in os.listdir("/proc")):
        return "a process that it began is there"
    if native_threads() > 1 and not ends_its_threads():
        return "threads of a library that it loaded run, and do not end for a fork"
    other = open_files()[1]
    if other is not None:
        return other
    with open("/proc/self/maps") as maps:
        if any(map(is_shared, maps)):
            return "it holds memory that processes share"
    for folder in emptied_folders():
        # Without a slot it is the machine's.
        if (in_slot or folder != "/dev/shm") and os.listdir(folder):
            return "there are files in `%s`" % folder
    if signals.getsignal(signals.SIGCHLD) == signals.SIG_IGN:
        return "it ignores SIGCHLD"
    # Where children are to stand, which has to have a name.
    os.getcwd()
    return None


def become_child(signals, mask, positions):
    global ME
    ME = os.getpid()
    # One after another has the same open files, and the same ends of pipes.
    for number, position in positions:
        os.lseek(number, position, os.SEEK_SET)
    for number in (1, 2, CHANNEL):
        try:
            os.set_blocking(number, True)
        except OSError:
            pass
    reseed(os.urandom(32))
    try:
        # At the memory limit the kernel is to end this process, and not the one that it was forked from.
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:
        pass
    # What was sent to the group meanwhile is delivered here.
    signals.pthread_sigmask(signals.SIG_SETMASK, mask)


def end_as(status):
    """Nobody can read what follows half a frame: this process ends as its child did."""
    if os.WIFSIGNALED(status):
        import _signal

        number = os.WTERMSIG(status)
        try:
            _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            pass
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {number})
        os.kill(ME, number)
    os._exit(os.WEXITSTATUS(status) or 1)


def serve_by_forks(signals, handler):
    import gc
    import mmap

    positions, _ = open_files()
    here = os.getcwd()
    # How far a child came: what the channel holds after its end depends on it.
    state = mmap.mmap(-1, 1)
    gc.collect()
    gc.freeze()
    mask = signals.pthread_sigmask(signals.SIG_BLOCK, signals.valid_signals())
    while True:
        state[0] = WAITS
        # By name: one that a call wrote to was mounted anew, and whoever stands there stands in the one of before.
        os.chdir(here)
        child = os.fork()
        if child == 0:
            become_child(signals, mask, positions)
            channel = Channel()
            _, body = channel.receive()
            state[0] = READ
            invoke(handler, body, None, state)
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        if state[0] == ANSWERS:
            end_as(status)
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = 0 if signal else os.WEXITSTATUS(status)
        cpu_us = int((usage.ru_utime + usage.ru_stime) * 1000000)
        fields = ((signal, 4), (code, 4), (cpu_us, 8), (usage.ru_maxrss * 1024, 8), (state[0] == WAITS, 1))
        send(OVER, b"".join(int(value).to_bytes(size, "big") for value, size in fields))
        # The slot is as new: nothing lives there but this process.
        receive_one()


