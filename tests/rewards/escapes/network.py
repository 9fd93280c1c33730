"""Programs that reach for other machines, or for this one's services."""


def tcp():
    import socket

    socket.create_connection(("127.0.0.1", PORT), timeout=1).sendall(b"ESCAPED")
    print("ESCAPED")


def tcp6():
    import socket

    socket.create_connection(("::1", PORT), timeout=1).sendall(b"ESCAPED")
    print("ESCAPED")


def udp():
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"ESCAPED", ("127.0.0.1", PORT))
    print("ESCAPED")


def names():
    import socket

    print("ESCAPED", socket.getaddrinfo("example.com", 80))


def web():
    import urllib.request

    print("ESCAPED", urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=1).read())


def local_socket():
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        connection.sendall(b"ESCAPED")
    print("ESCAPED")


def abstract_socket():
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + ABSTRACT)
        connection.sendall(b"ESCAPED")
    print("ESCAPED")


def other_families():
    """Raw, packet, netlink, virtual machine, kernel crypto, bluetooth, CAN, TIPC."""
    import socket

    for family, kind in ((2, 3), (17, 3), (16, 3), (40, 1), (38, 5), (31, 3), (29, 3), (30, 1)):
        try:
            socket.socket(family, kind)
            print("ESCAPED", family)
        except PermissionError:
            print("refused")


def interfaces():
    import socket

    up = [name for _, name in socket.if_nameindex() if name != "lo"]
    print("ESCAPED", up)
