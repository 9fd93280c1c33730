"""Programs that read what is not theirs, or write where they must not."""

# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH110, PTH111, PTH118, PTH120, PTH123, PTH208, PTH211, SIM105, SIM115


def read_the_secret():
    print(open(SECRET).read())


def read_the_secrets_folder():
    import os

    for folder, _, names in os.walk(os.path.dirname(SECRET)):
        for name in names:
            print(open(os.path.join(folder, name)).read())


def read_the_environment():
    import os

    print(dict(os.environ))
    for pid in (1, os.getpid(), os.getppid(), HOST_PID, "self"):
        try:
            print(open(f"/proc/{pid}/environ").read())
        except OSError:
            print("refused")


def read_the_homes():
    import os

    for folder in ("/root", "/home", "/etc", "/var", "/srv", "/mnt", "/run", REPOSITORY, os.path.expanduser("~root")):
        if os.path.exists(folder):
            print("ESCAPED", folder, os.listdir(folder))


def read_the_passwords():
    print("ESCAPED", open("/etc/shadow").read(), open("/etc/passwd").read())


def read_the_repository():
    print("ESCAPED", open(f"{REPOSITORY}/pyproject.toml").read())


def read_through_the_first():
    for pid in (1, 2, "self", HOST_PID):
        try:
            print("ESCAPED", open(f"/proc/{pid}/root{SECRET}").read())
        except OSError:
            print("refused")


def read_through_open_descriptors():
    import os

    for number in range(3, 64):
        try:
            os.fchdir(number)
            print("ESCAPED", os.listdir("."))
        except OSError:
            pass
        try:
            print("ESCAPED", os.read(number, 100))
        except OSError:
            pass


def write_over_the_secret():
    open(SECRET, "w").write("ESCAPED")


def write_beside_the_secret():
    import os

    os.makedirs(os.path.dirname(SECRET), exist_ok=True)
    open(os.path.join(os.path.dirname(SECRET), "new"), "w").write("ESCAPED")


def write_into_the_system():
    import sys

    for path in ("/x", "/usr/x", "/usr/bin/x", "/lib/x", "/dev/x", f"{sys.prefix}/x", sys.executable, "/python/lib/x"):
        try:
            open(path, "ab")
            print("ESCAPED", path)
        except OSError:
            print("refused")


def change_the_system():
    import os
    import sys

    for change in (os.unlink, lambda path: os.chmod(path, 0o777), os.utime, lambda path: os.rename(path, "/tmp/x")):
        try:
            change(sys.executable)
            print("ESCAPED")
        except OSError:
            print("refused")


def symbolic_link():
    import os

    os.symlink(SECRET, "/tmp/link")
    print(open("/tmp/link").read())


def hard_link():
    import os
    import sys

    for source in (SECRET, sys.executable):
        try:
            os.link(source, "/tmp/hard")
            print("ESCAPED")
        except OSError:
            print("refused")


def upwards():
    print(open("../" * 20 + SECRET).read())


def out_of_a_chroot():
    import os

    os.mkdir("/tmp/x")
    os.chroot("/tmp/x")
    os.chdir("../" * 20)
    os.chroot(".")
    print(open(SECRET).read(), "ESCAPED")


def mount_the_disk():
    import ctypes

    libc = ctypes.CDLL(None)
    for source, kind in ((b"/dev/vda", b"ext4"), (b"proc", b"proc"), (b"sysfs", b"sysfs"), (b"tmpfs", b"tmpfs")):
        if libc.mount(source, b"/tmp", kind, 0, None) == 0:
            print("ESCAPED")


def mount_writable():
    import ctypes

    libc = ctypes.CDLL(None)
    for target in (b"/", b"/usr", b"/python"):
        if libc.mount(None, target, None, 32 | 4096, None) == 0 or libc.umount2(target, 2) == 0:
            print("ESCAPED")


def turn_the_root():
    import ctypes
    import os

    libc = ctypes.CDLL(None)
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    if libc.syscall(number, b"/tmp", b"/tmp") == 0:
        print("ESCAPED")


def open_by_number():
    """A file's number on the disk, without its name."""
    import ctypes
    import os
    import struct

    handle = struct.pack("IiQ", 8, 1, 2)
    libc = ctypes.CDLL(None)
    for folder in ("/usr", "/", "/dev/null"):
        if libc.open_by_handle_at(os.open(folder, os.O_RDONLY), handle, 0) >= 0:
            print("ESCAPED")


def make_a_device():
    import os
    import stat

    for kind, number in ((stat.S_IFBLK, os.makedev(254, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
        try:
            os.mknod("/tmp/device", kind | 0o666, number)
            print("ESCAPED", open("/tmp/device", "rb").read(16))
        except OSError:
            print("refused")


def devices():
    for name in ("mem", "kmem", "kmsg", "port", "vda", "sda", "tty", "ptmx", "fuse", "kvm", "net/tun", "shm/x"):
        for mode in ("rb", "wb"):
            try:
                open(f"/dev/{name}", mode)
                print("ESCAPED", name)
            except OSError:
                print("refused")


def kernel_files():
    paths = ("/proc/kcore", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/mem", "/proc/self/exe")
    for path in (*paths, "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs"):
        for mode in ("rb", "r+b"):
            try:
                open(path, mode)
                print("ESCAPED", path)
            except OSError:
                print("refused")


def release_agent():
    import ctypes
    import os

    os.mkdir("/tmp/group")
    if ctypes.CDLL(None).mount(b"cgroup", b"/tmp/group", b"cgroup", 0, b"memory") == 0:
        open("/tmp/group/release_agent", "w").write(SECRET)
        print("ESCAPED")


def a_program_with_root_rights():
    import os
    import shutil

    shutil.copy("/usr/bin/id", "/tmp/id")
    os.chmod("/tmp/id", 0o6777)
    os.chown("/tmp/id", 0, 0)
    print("ESCAPED")
