"""A cloud in a network namespace: its metadata service, and a server that only Flux should reach. Serves until it is killed."""
import fcntl, socket, struct, sys, threading

SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1
ipv4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(ipv4, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
for number, address in enumerate(sys.argv[1].split(",")):
    sockaddr = struct.pack("H2x4s8x", socket.AF_INET, socket.inet_aton(address))
    fcntl.ioctl(ipv4, SIOCSIFADDR, struct.pack("16s16s8x", b"lo:%d" % number, sockaddr))
ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
for address in filter(None, sys.argv[2].split(",")):
    fcntl.ioctl(ipv6, SIOCSIFADDR, struct.pack("16sii", socket.inet_pton(socket.AF_INET6, address), 128, 1))


def serve(listener):
    held = []
    while True:
        held.append(listener.accept()[0])
        held[-1].sendall(b"a secret")


for port in sys.argv[3].split(","):
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("::", int(port)))
    listener.listen(64)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
