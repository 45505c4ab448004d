"""Run commands on a real Kubo 0.22: the shared library of the wheel kubo_python.

    unshare -n python kubo.py LIBRARY REPOSITORY COMMAND ARGUMENT...

    init             create the repository, without peers, discovery or listening addresses
    add PATH...      add each path as `ipfs add -r --hidden` does; prints one CID a line
    get CID PATH     write the file or directory to PATH

It must be its own process, because the Go runtime in the library does not survive a fork, and in
its own network namespace, because every command starts a node that goes online by itself.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def raise_loopback() -> None:
    """Bring up lo, which is down in a new network namespace and which the node wants."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16xh14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def isolate(repository: str) -> None:
    path = os.path.join(repository, "config")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["Bootstrap"] = []
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Addresses"].update(Swarm=[], API=[], Gateway=[], Announce=[], NoAnnounce=[])
    config["Routing"]["Type"] = "none"
    config["Swarm"].update(DisableNatPortMap=True, RelayClient={"Enabled": False})
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Reprovider"] = {"Interval": "0s"}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


def main() -> int:
    library, repository, command, *arguments = sys.argv[1:]
    raise_loopback()
    kubo = ctypes.CDLL(library)
    kubo.AddFile.restype = ctypes.c_char_p
    kubo.AddFile.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_bool]
    kubo.Download.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p]
    repo = repository.encode()
    match command:
        case "init":
            os.makedirs(repository, exist_ok=True)
            status = int(kubo.CreateRepo(repo))
            isolate(repository)
            return 0 if status == 1 else 1
        case "add":
            for path in arguments:
                cid = kubo.AddFile(repo, os.fsencode(os.path.abspath(path)), False)
                if not cid:
                    return 1
                print(cid.decode(), flush=True)
            return 0
        case "get":
            cid, path = arguments
            return 0 if kubo.Download(repo, cid.encode(), os.fsencode(path)) == 0 else 1
    return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # The threads of the Go runtime would outlive an orderly exit.
    os._exit(code)
