"""What a hostile function tries: `attack.py ATTACK [ARGUMENT...]`.

Everything that is tried says HELD or REACHED on a line of its own; what is neither is a broken attack, and the test fails.
"""
import ctypes, errno, glob, mmap, os, resource, signal, socket, stat, struct, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)
EPERM, ENOSYS = errno.EPERM, errno.ENOSYS


def say(reached, what, why=""):
    print("REACHED" if reached else "HELD", f"{what}: {why}", flush=True)


def tries(what, attempt, *expected):
    """REACHED unless it fails, with one of these errors where some are named."""
    try:
        result = attempt()
    except OSError as error:
        say(expected and error.errno not in expected, what, error.strerror)
    except ValueError as error:  # what `resource` makes of EPERM
        say(False, what, error)
    else:
        say(True, what, result)


def call(number, *arguments):
    ctypes.set_errno(0)
    padded = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *padded, *[ctypes.c_long(0)] * (6 - len(padded)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 20)


# Other people's files and processes.

def look(marker, *paths):
    """The marker, in files by their paths on the machine."""
    marker = marker.encode()
    for path in paths:
        for at in [path, "/proc/1/root" + path, "/proc/self/root/../../.." + path, "/proc/1/cwd/../../.." + path]:
            try:
                say(marker in read(at), at, "opened")
            except OSError as error:
                say(False, at, error.strerror)


def search(marker, *paths):
    """The same, in all files that are visible, and in other processes."""
    look(marker, *paths)
    marker, found = marker.encode(), []
    for top in os.listdir("/"):
        if top in ("proc", "usr", "lib", "lib32", "lib64", "libx32", "bin", "sbin"):
            continue
        for directory, _, files in os.walk("/" + top):
            for name in files:
                path = os.path.join(directory, name)
                try:
                    if os.path.isfile(path) and path != os.path.abspath(__file__) and marker in read(path):
                        found.append(path)
                except OSError:
                    pass
    say(found, "files", found)
    found, others = [], 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        others += 1
        for path in [f"/proc/{pid}/environ", *glob.glob(f"/proc/{pid}/fd/*")]:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                if marker in os.read(fd, 1 << 16):
                    found.append(path)
                os.close(fd)
            except OSError:
                pass
    say(found, f"{others} other processes", found)


def signals(*pids):
    for pid in map(int, pids):
        for what, attempt in [
            ("signal 0", lambda: os.kill(pid, 0)),
            ("SIGKILL", lambda: os.kill(pid, signal.SIGKILL)),
            ("the group", lambda: os.killpg(pid, signal.SIGKILL)),
            ("ptrace", lambda: libc_ptrace(pid)),
            ("its memory", lambda: read(f"/proc/{pid}/mem")),
            ("pidfd", lambda: os.pidfd_open(pid)),
        ]:
            tries(f"{what} of {pid}", attempt)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.kill(-1, signal.SIGTERM)
        say(False, "everybody", "only this slot's processes")
    except OSError as error:
        say(False, "everybody", error.strerror)


def libc_ptrace(pid):
    PTRACE_SEIZE = 0x4206
    ctypes.set_errno(0)
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def tricks(target, device, program):
    """Links in the code directory, a device and a setuid program there; links made here."""
    for link in ("to-secret", "up", "absolute"):
        tries(link, lambda: read(f"/var/task/{link}"))
    tries("hard link of the code", lambda: os.link("/var/task/attack.py", "/tmp/code"))
    tries("hard link into the code", lambda: os.link("/tmp", "/var/task/tmp"))
    tries("link into the code", lambda: os.symlink("/", "/var/task/root"))
    tries("new name in the code", lambda: os.rename("/var/task/attack.py", "/var/task/other.py"))
    tries("writing to the code", lambda: open("/var/task/attack.py", "ab"))
    tries("a device in the code", lambda: read(f"/var/task/{device}"))
    tries("making a device", lambda: os.mknod("/tmp/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)), EPERM)
    os.symlink(target, "/tmp/link")
    tries("a link to what is hidden", lambda: read("/tmp/link"), errno.ENOENT)
    uid = subprocess.run([f"/var/task/{program}", "-u"], capture_output=True, text=True).stdout.strip()
    say(uid == "0", "a setuid program in the code", f"uid {uid}")


# The kernel.

def calls(*named):
    """System calls by number, with arguments that are never right: an answer about them means that their code ran."""
    for name, number in (pair.split("=") for pair in named):
        tries(name, lambda: call(int(number)), EPERM, ENOSYS)


def namespaces(clone, unshare, setns):
    for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("network", 0x40000000), ("pid", 0x20000000),
                       ("user and mount", 0x10020000), ("cgroup", 0x02000000)]:
        tries(f"unshare {name}", lambda: call(int(unshare), flag), EPERM)

        def cloned():
            if call(int(clone), flag | signal.SIGCHLD) == 0:
                os._exit(0)
        tries(f"clone {name}", cloned, EPERM)
    for kind in ("user", "mnt", "net", "pid"):
        def join():
            call(int(setns), os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0)
        tries(f"setns {kind}", join)
    tries("setns with a slot's own flags", lambda: call(int(setns), os.pidfd_open(1), 0x20000000), EPERM)


def mounts():
    def mount(source, target, kind, flags=0):
        ctypes.set_errno(0)
        if libc.mount(source, target, kind, flags, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.makedirs("/tmp/m", exist_ok=True)
    tries("tmpfs", lambda: mount(b"x", b"/tmp/m", b"tmpfs"))
    tries("proc", lambda: mount(b"x", b"/tmp/m", b"proc"))
    tries("sysfs", lambda: mount(b"x", b"/tmp/m", b"sysfs"))
    tries("cgroup", lambda: mount(b"x", b"/tmp/m", b"cgroup2"))
    tries("bind", lambda: mount(b"/", b"/tmp/m", None, 4096))
    tries("remount", lambda: mount(b"none", b"/", None, 32))
    tries("umount", lambda: libc_check(libc.umount2(b"/proc", 2)))
    tries("chroot", lambda: os.chroot("/tmp/m"))
    for path in ("/", "/etc", "/usr", "/usr/bin", "/var/task", "/dev", "/proc/sys/kernel"):
        tries(f"writing to {path}", lambda: open(f"{path}/flux-attack", "w"))


def libc_check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def kernel_files():
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/sys/kernel/debug"):
        tries(path, lambda: os.open(path, os.O_RDONLY))
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
                 "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj", "/proc/self/uid_map"):
        def write():
            with open(path, "w") as file:
                file.write("0 0 1")
        tries(f"writing {path}", write)
    tries("a lower OOM score", lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-500"))


def sockets():
    for name, family, kind, protocol in [
        ("AF_ALG", 38, socket.SOCK_SEQPACKET, 0), ("AF_VSOCK", 40, socket.SOCK_STREAM, 0),
        ("AF_PACKET", 17, socket.SOCK_RAW, 0), ("AF_KEY", 15, socket.SOCK_RAW, 2), ("AF_XDP", 44, socket.SOCK_RAW, 0),
        ("netfilter", 16, socket.SOCK_RAW, 12), ("audit", 16, socket.SOCK_RAW, 9), ("crypto", 16, socket.SOCK_RAW, 21),
        ("raw ICMP", 2, socket.SOCK_RAW, 1), ("raw IPv6", 10, socket.SOCK_RAW, 58), ("SOCK_PACKET", 2, 10, 3),
        ("MPTCP", 2, socket.SOCK_STREAM, 262), ("SCTP", 2, socket.SOCK_STREAM, 132), ("TIPC", 30, socket.SOCK_STREAM, 0),
    ]:
        tries(name, lambda: socket.socket(family, kind, protocol), EPERM, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def cgroups():
    seen = [line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup" in line]
    say(seen, "mounted cgroups", seen)
    for path in glob.glob("/sys/fs/cgroup*") + ["/sys/fs/cgroup/cgroup.procs", "/proc/1/root/sys/fs/cgroup/tasks"]:
        tries(path, lambda: open(path, "w"))
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()
    print("waiting", flush=True)
    sys.stdin.read()


# The network.

def reach(*targets):
    for target in targets:
        kind, _, address = target.partition(":")
        what = address.replace("\0", "@")

        def attempt():
            if kind in ("unix", "abstract"):
                name = address if kind == "unix" else "\0" + address
                for how in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
                    try:
                        return socket.socket(socket.AF_UNIX, how).connect(name) or "connected"
                    except OSError as error:
                        last = error
                raise last
            host, port = address.rsplit(":", 1)
            host, port = host.strip("[]"), int(port)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            stream = socket.socket(family, socket.SOCK_STREAM)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                stream.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 5, 0))
            if kind == "tcp":
                stream.connect((host, port))
                return stream.recv(64)
            if kind == "fast":
                stream.sendto(b"x", 0x20000000, (host, port))
                return stream.recv(64)
            if kind == "bind":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                return stream.bind((host, port)) or "bound"
            datagram = socket.socket(family, socket.SOCK_DGRAM)
            if kind == "udp":
                return datagram.sendto(b"x", (host, port))
            datagram.connect((host, port))
            return datagram.send(b"x")
        # That the port is in use would be luck, not a wall.
        tries(f"{kind} {what}", attempt, *[EPERM] * (kind == "bind"))


# More than its share.

def fork_bomb(most):
    count = 0
    try:
        while count < 5000:
            if os.fork() == 0:
                signal.pause()
            count += 1
        say(True, "forks", count)
    except OSError as error:
        say(count > int(most), "forks", f"{count}, then {error.strerror}")


def memory_bomb(how):
    """Never ends by itself unless it gets 1 GB."""
    def fill(write):
        for _ in range(1024):
            write(b"x" * (1 << 20))
    if how == "heap":
        held = []
        fill(lambda data: held.append(bytearray(data)))
    elif how == "children":
        for _ in range(8):
            if os.fork() == 0:
                held = []
                for _ in range(64):
                    held.append(bytearray(b"x" * (1 << 20)))
                time.sleep(0.5)
                os._exit(0)
        ends = [os.wait()[1] for _ in range(8)]
        return say(signal.SIGKILL not in ends, "children", ends)
    elif how == "memfd":
        fd = os.memfd_create("m")
        fill(lambda data: os.write(fd, data))
    elif how == "shared":
        area = mmap.mmap(-1, 1 << 30, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        fill(area.write)
    say(True, how, "1 GB")


def disk(most):
    writable = []
    for directory, below, _ in os.walk("/"):
        below[:] = [b for b in below if os.path.join(directory, b) not in ("/proc", "/usr")]
        if os.access(directory, os.W_OK):
            writable.append(directory)
    say(set(writable) - {"/tmp", "/dev/shm"}, "writable places", writable)
    for directory in writable:
        written = 0
        try:
            with open(f"{directory}/big", "wb", buffering=0) as file:
                while written < 1 << 30:
                    written += file.write(b"x" * (1 << 16))
        except OSError as error:
            say(written > int(most) or error.errno != errno.ENOSPC, directory, f"{written} bytes, then {error.strerror}")
        else:
            say(True, directory, written)
        files = 0
        try:
            while files < 200_000:
                os.close(os.open(f"{directory}/{files}", os.O_CREAT))
                files += 1
            say(True, f"files in {directory}", files)
        except OSError as error:
            say(False, f"files in {directory}", f"{files}, then {error.strerror}")


def descriptors(most):
    count, held = 0, []
    for name, make in [("files", lambda: [os.open("/dev/null", os.O_RDONLY)]), ("pipes", lambda: list(os.pipe())),
                       ("sockets", lambda: [socket.socket().detach()])]:
        try:
            while len(held) < 100_000:
                held += make()
            say(True, name, len(held))
        except OSError as error:
            say(len(held) > int(most), name, f"{len(held)}, then {error.strerror}")
        for fd in held:
            os.close(fd)
        held.clear()
    tries("a higher limit", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20)))


def inotify(hold):
    """The instances of one user are counted together, 128 by default."""
    count = 0
    while count < 4096 and libc.inotify_init1(0) >= 0:
        count += 1
    print(f"took {count}", flush=True)
    if hold == "hold":
        sys.stdin.read()


def ipc(marker):
    for number in range(4):
        tries(f"shared memory {number}", lambda: libc_id(libc.shmget(77, 0, 0)), errno.ENOENT)
    tries("semaphores", lambda: libc_id(libc.semget(77, 0, 0)), errno.ENOENT)
    tries("message queue", lambda: libc_id(libc.msgget(77, 0)), errno.ENOENT)
    say(os.listdir("/dev/shm"), "POSIX shared memory", os.listdir("/dev/shm"))
    say(os.listdir("/tmp"), "temporary files", os.listdir("/tmp"))
    say(marker in read("/proc/sysvipc/shm").decode(), "SysV", "listed")


def libc_id(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# Living on.

def linger(mark):
    """A daemon that ignores all signals and holds the pipes, twice forked and in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                if number not in (9, 19, 32, 33):
                    signal.signal(number, signal.SIG_IGN)
            libc.prctl(1, 0, 0, 0, 0)  # no parent-death signal
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    os.execv("/bin/sleep", ["sleep", mark])
            os.execv("/bin/sleep", ["sleep", mark])
        os._exit(0)
    os.wait()
    time.sleep(0.05)
    say(False, "the daemons", "started")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
