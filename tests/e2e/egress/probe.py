"""probe.py FILE: makes every attempt of a JSON list at the same time and prints what came back.

The HTTP and the SOCKS proxy are where the environment says. Text is Latin-1: a character is a byte.
"""

import concurrent.futures
import ipaddress
import json
import os
import socket
import ssl
import struct
import sys
import urllib.parse

LIMIT = 6  # seconds for each step


def proxy(*names):
    for name in names:
        if value := os.environ.get(name):
            url = urllib.parse.urlsplit(value)
            return url.hostname, url.port
    return "127.0.0.1", 808


HTTP = proxy("http_proxy", "HTTP_PROXY")
SOCKS = proxy("all_proxy", "ALL_PROXY")


class Refused(Exception):
    pass


def raw(text):
    return text.encode("latin1")


def socks(sock, host, port, by_address):
    if by_address:
        packed = ipaddress.ip_address(host).packed
        target = bytes([1 if len(packed) == 4 else 4]) + packed
    else:
        target = bytes([3, len(raw(host))]) + raw(host)
    sock.sendall(b"\x05\x01\x00")
    if sock.recv(2) != b"\x05\x00":
        raise Refused("no method")
    sock.sendall(b"\x05\x01\x00" + target + port.to_bytes(2, "big"))
    answer = sock.recv(4, socket.MSG_WAITALL)
    if len(answer) < 4 or answer[1]:
        raise Refused(f"code {answer[1] if len(answer) > 1 else None}")
    size = {1: 4, 4: 16}.get(answer[3]) or sock.recv(1)[0]
    sock.recv(size + 2, socket.MSG_WAITALL)


def bracketed(host):
    return f"[{host}]" if ":" in host else host


def connect(sock, host, port):
    sock.sendall(raw(f"CONNECT {bracketed(host)}:{port} HTTP/1.1\r\nHost: {bracketed(host)}:{port}\r\n\r\n"))
    head = b""
    while b"\r\n\r\n" not in head:
        more = sock.recv(1)
        if not more:
            break
        head += more
    if b" 200 " not in head.split(b"\r\n")[0] + b" ":
        rest = b""
        try:
            while more := sock.recv(65536):
                rest += more
        except OSError:
            pass
        raise Refused((head + rest).decode("latin1"))


def stream(attempt):
    way, host, port = attempt["way"], attempt["host"], attempt["port"]
    if way == "direct":
        sock = socket.create_connection((host, port), LIMIT)
    elif way == "mapped":  # an IPv4 address on an IPv6 socket
        sock = socket.socket(socket.AF_INET6)
        sock.settimeout(LIMIT)
        sock.connect(("::ffff:" + host, port))
    elif way in ("http", "proxy", "connect"):
        sock = socket.create_connection(HTTP, LIMIT)
    else:
        sock = socket.create_connection(SOCKS, LIMIT)
    if way == "connect":
        connect(sock, host, port)
    elif way in ("socks", "socksip"):
        socks(sock, host, port, way == "socksip")
    if attempt.get("tls") is not None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock, server_hostname=attempt["tls"] or None)
    got = b""
    with sock:
        for number, text in enumerate(attempt["send"]):
            if number:
                # An answer first, where there is one.
                sock.settimeout(0.3)
                try:
                    got += sock.recv(65536)
                except TimeoutError:
                    pass
                sock.settimeout(LIMIT)
            sock.sendall(raw(text.replace("@PROXY@", "%s:%d" % HTTP)))
        sock.settimeout(attempt.get("wait", LIMIT))
        try:
            while more := sock.recv(65536):
                got += more
                if raw(attempt["until"]) in got:
                    break
        except TimeoutError:
            pass
        except OSError as e:
            return got, e
    return got, None


def datagram(attempt):
    host, port = attempt["host"], attempt["port"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(2)
    if attempt.get("connected", True):
        sock.connect((host, port))
        sock.send(raw(attempt["send"][0]))
    else:
        sock.sendto(raw(attempt["send"][0]), (host, port))
    return sock.recv(65536), None


def ping(attempt):
    host = attempt["host"]
    six = ":" in host
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    sock = socket.socket(family, socket.SOCK_RAW if attempt["way"] == "rawping" else socket.SOCK_DGRAM, protocol)
    sock.settimeout(2)
    message = struct.pack("!BBHHH", 128 if six else 8, 0, 0, 1, 1) + raw(attempt["send"][0])
    if not six:
        padded = message + b"\0" * (len(message) % 2)
        total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
        total = (total & 0xFFFF) + (total >> 16)
        message = message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]
    sock.sendto(message, (host, 0))
    return sock.recv(65536), None


def question(attempt):
    """A DNS question as bytes, to any server."""
    name = b"".join(bytes([len(label)]) + raw(label) for label in attempt["name"].split(".") if label) + b"\0"
    packet = struct.pack("!HHHHHH", 0x1234, 0x0100, 1, 0, 0, 1) + name + struct.pack("!HH", attempt["type"], 1)
    packet += b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)  # EDNS, for the reason of a refusal
    host, port = attempt["host"], attempt["port"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if attempt["way"] == "dnstcp":
        with socket.create_connection((host, port), LIMIT) as sock:
            sock.sendall(len(packet).to_bytes(2, "big") + packet)
            answer = sock.makefile("rb").read(int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big"))
    else:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(3)
        sock.connect((host, port))
        sock.send(packet)
        answer = sock.recv(4096)
    if len(answer) < 12:
        return answer, "short"
    return f"code={answer[3] & 15} answers={int.from_bytes(answer[6:8], 'big')}".encode(), None


def lookup(attempt):
    found = socket.getaddrinfo(attempt["host"], attempt["port"], type=socket.SOCK_STREAM)
    return repr([f[4][0] for f in found]).encode(), None


def unix(attempt):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT)
        sock.connect("\0" + attempt["host"])
        sock.sendall(raw(attempt["send"][0]) + b"\n")
        return sock.recv(65536), None


WAYS = {"udp": datagram, "ping": ping, "rawping": ping, "dns": question, "dnstcp": question, "lookup": lookup,
        "abstract": unix}


def one(attempt):
    try:
        got, error = WAYS.get(attempt["way"], stream)(attempt)
    except (OSError, Refused, ValueError) as e:
        got, error = b"", e
    return {"got": got.decode("latin1"), "error": None if error is None else f"{type(error).__name__}: {error}"}


with open(sys.argv[1]) as f:
    attempts = json.load(f)
with concurrent.futures.ThreadPoolExecutor(24) as pool:
    print(json.dumps(list(pool.map(one, attempts))))
