"""An internet of our own, in network namespaces that end with the process that asked for them.

    world.py hold DIR UID...     the "host": where ringfence and its controls run
    world.py internet DIR        everything else, in a namespace of its own (started by `hold`)

Started in new network and mount namespaces. Says `ready` when all servers answer, lives until its
standard input ends, then removes DIR. Every server writes what reached it to DIR/log, one JSON
object a line: the tests' oracle. Addresses look public because the filter treats those set aside
for documentation as special; they exist only in here.
"""

import asyncio
import base64
import hashlib
import io
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import urllib.parse
import zipfile

HOST4, GATE4 = "93.184.0.2", "93.184.0.1"
HOST6, GATE6 = "2a00:93::2", "2a00:93::1"
DNS4, DNS6 = "45.53.53.53", "2606:53::53"
# Whole networks are local to the internet: any address of theirs answers, so each case can have its own.
NETWORKS = [
    "45.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
    "2606::/16", "64:ff9b::/96", "fd00::/8",
]
HTTP_PORTS, TLS_PORTS = [80, 8080], [443, 8443]
SERVER_FIRST, CLIENT_FIRST = 5432, 6379
UDP_PORTS = [7, 123, 443]
UDP_PLACES = ["45.10.0.1", "45.10.0.2", "45.66.6.6"]
CERTIFIED = [
    "*.example.com", "*.example.net", "*.refused.example.org", "*.wild.example.com", "*.front.example.net",
    "*.v6only.example.com", "*.addr.example.com",
]

# Name -> addresses. A leading `*.` covers everything below it.
ZONE = {
    "good.example.com": ["45.10.0.1", "2606:10::1"],
    "api.good.example.com": ["45.10.0.2", "2606:10::2"],
    "git.example.com": ["45.10.0.3", "2606:10::3"],
    "npm.example.com": ["45.10.0.4", "2606:10::4"],
    "pypi.example.com": ["45.10.0.5", "2606:10::5"],
    "crates.example.com": ["45.10.0.6", "2606:10::6"],
    "pg.example.com": ["45.10.0.7", "2606:10::7"],
    "*.wild.example.com": ["45.10.0.8", "2606:10::8"],
    "*.v4only.example.com": ["45.10.0.9"],
    "*.v6only.example.com": ["2606:10::a"],
    # Several hosts at one address.
    "good.front.example.net": ["45.20.0.1"],
    "bad.front.example.net": ["45.20.0.1"],
    # Names that lead where nothing of the sandbox should get.
    "*.private.example.com": ["10.1.2.3"],
    "*.private172.example.com": ["172.16.5.5"],
    "*.private192.example.com": ["192.168.7.7"],
    "*.shared.example.com": ["100.100.100.200"],
    "*.meta.example.com": ["169.254.169.254"],
    "*.meta6.example.com": ["fd00:ec2::254"],
    "*.mapped.example.com": ["::ffff:169.254.169.254"],
    "*.nat64.example.com": ["64:ff9b::a9fe:a9fe"],
    "*.loop.example.com": ["127.0.0.1"],
    "*.loop6.example.com": ["::1"],
    "*.zero.example.com": ["0.0.0.0"],
    "*.mixed.example.com": ["10.1.2.3", "10.1.2.4", "45.10.0.1"],
}
ELSEWHERE = ["45.66.6.6", "2606:66::6"]  # every name that is not listed
CNAMES = {"*.alias.example.com": "x.private.example.com"}
REBINDING = ".rebind.example.com"  # public and private in turn

PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


class Log:
    def __init__(self, dir):
        self.fd = os.open(f"{dir}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, event, **fields):
        os.write(self.fd, (json.dumps({"event": event, **fields}) + "\n").encode())


def run(*args, **more):
    subprocess.run(args, check=True, stdin=subprocess.DEVNULL if "input" not in more else None, **more)


def ip(*lines):
    run("ip", "-batch", "-", input="\n".join(lines) + "\n", text=True)


def die_with_parent():
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def plain(address):
    """An IPv4 address that came in on a socket for both families, as itself."""
    return address[7:] if address.startswith("::ffff:") else address.split("%")[0]


# -- what is served ---------------------------------------------------------------------------------


def certificates(dir):
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run("openssl", "req", "-x509", *ec, "-subj", "/CN=ringfence test CA", "-keyout", f"{dir}/ca.key",
        "-out", f"{dir}/ca.pem", **quiet)
    with open(f"{dir}/names", "w") as f:
        f.write("subjectAltName=" + ",".join(f"DNS:{n}" for n in [*CERTIFIED, "good.example.com"]))
    run("openssl", "req", *ec, "-subj", "/CN=internet", "-keyout", f"{dir}/tls.key", "-out", f"{dir}/tls.csr",
        **quiet)
    run("openssl", "x509", "-req", "-in", f"{dir}/tls.csr", "-CA", f"{dir}/ca.pem", "-CAkey", f"{dir}/ca.key",
        "-set_serial", "2", "-days", "2", "-extfile", f"{dir}/names", "-out", f"{dir}/tls.pem", **quiet)


def keys(dir):
    for key in ["host", "id"]:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", f"{dir}/{key}")
    shutil.copy(f"{dir}/id.pub", f"{dir}/authorized")


def repository(dir):
    env = {"PATH": os.environ["PATH"], "HOME": dir, "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ["AUTHOR", "COMMITTER"]:
        env |= {f"GIT_{who}_NAME": "t", f"GIT_{who}_EMAIL": "t@example.com"}
    def git(*args, **more):
        run("git", *args, env=env, **more)
    git("init", "-q", "-b", "main", f"{dir}/source")
    with open(f"{dir}/source/file", "w") as f:
        f.write("from the repository\n")
    git("-C", f"{dir}/source", "add", "file")
    git("-C", f"{dir}/source", "commit", "-q", "-m", "one")
    git("clone", "-q", "--bare", f"{dir}/source", f"{dir}/srv/repo.git")
    open(f"{dir}/srv/repo.git/git-daemon-export-ok", "w").close()


def tarball(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def wheel():
    out, info = io.BytesIO(), "ringtest-1.0.0.dist-info"
    files = {
        "ringtest.py": "WORD = 'from the wheel'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: ringtest\nVersion: 1.0.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(out, "w") as z:
        for name, text in files.items():
            z.writestr(name, text)
    return out.getvalue()


NPM = tarball({
    "package/package.json": '{"name":"ringtest","version":"1.0.0","main":"index.js"}',
    "package/index.js": "module.exports = 'from the package';\n",
})
WHEEL = wheel()
CRATE = tarball({
    "ringtest-1.0.0/Cargo.toml": '[package]\nname = "ringtest"\nversion = "1.0.0"\nedition = "2021"\n',
    "ringtest-1.0.0/src/lib.rs": "pub const WORD: &str = \"from the crate\";\n",
})


def registry(base, path):
    """What a package registry at `base` has at `path`: (type, bytes), or None."""
    if path == "/ringtest":  # npm
        digest = base64.b64encode(hashlib.sha512(NPM).digest()).decode()
        version = {"name": "ringtest", "version": "1.0.0",
                   "dist": {"tarball": f"{base}/-/ringtest-1.0.0.tgz", "integrity": f"sha512-{digest}"}}
        packument = {"name": "ringtest", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        return "application/json", json.dumps(packument).encode()
    if path == "/-/ringtest-1.0.0.tgz":
        return "application/octet-stream", NPM
    if path == "/simple/ringtest/":  # pip
        link = f"{base}/files/ringtest-1.0.0-py3-none-any.whl#sha256={hashlib.sha256(WHEEL).hexdigest()}"
        return "text/html", f'<html><body><a href="{link}">ringtest-1.0.0-py3-none-any.whl</a></body></html>'.encode()
    if path.startswith("/files/"):
        return "application/octet-stream", WHEEL
    if path == "/config.json":  # cargo
        return "application/json", json.dumps({"dl": f"{base}/dl/{{crate}}"}).encode()
    if path == "/ri/ng/ringtest":
        line = {"name": "ringtest", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False,
                "cksum": hashlib.sha256(CRATE).hexdigest()}
        return "text/plain", (json.dumps(line) + "\n").encode()
    if path.startswith("/dl/"):
        return "application/octet-stream", CRATE
    return None


# -- DNS --------------------------------------------------------------------------------------------


class Dns(asyncio.DatagramProtocol):
    asked = {}

    def __init__(self, log):
        self.log = log

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        answer = self.answer(data, "udp")
        if answer:
            self.transport.sendto(answer, peer)

    async def stream(self, reader, writer, **_):
        while True:
            size = await reader.readexactly(2)
            answer = self.answer(await reader.readexactly(int.from_bytes(size, "big")), "tcp")
            writer.write(len(answer).to_bytes(2, "big") + answer)

    def addresses(self, name):
        if name.endswith(".addr.example.com"):  # 45-1-2-3.addr.example.com
            return [name.split(".")[0].replace("-", ".")]
        if name.endswith(REBINDING):
            # By the questions for this name and kind, so that every second dial would go astray.
            self.asked[name] = self.asked.get(name, 0) + 1
            return [["45.10.0.1", "10.1.2.3"][(self.asked[name] - 1) % 2]]
        if name in ZONE:
            return ZONE[name]
        below = ["*." + name.split(".", n)[-1] for n in range(1, name.count(".") + 1)]
        return next((ZONE[b] for b in below if b in ZONE), ELSEWHERE)

    def answer(self, data, way):
        try:
            at, labels = 12, []
            while data[at]:
                labels.append(data[at + 1:at + 1 + data[at]])
                at += 1 + data[at]
            kind = int.from_bytes(data[at + 1:at + 3], "big")
            question = data[12:at + 5]
        except IndexError:
            self.log("dns", name=None, way=way)
            return None
        name = b".".join(labels).decode("latin1").lower()
        self.log("dns", name=name, type=kind, way=way)
        records = []
        alias = next((to for of, to in CNAMES.items() if name.endswith(of[1:])), None)
        owner = b"\xc0\x0c"
        if alias and kind in (1, 28):
            target = b"".join(bytes([len(l)]) + l.encode() for l in alias.split(".")) + b"\0"
            records.append(owner + struct.pack("!HHIH", 5, 1, 0, len(target)) + target)
            owner, name = target, alias
        # An address in the other family's clothes comes with AAAA only.
        if kind in (1, 28) and not (kind == 28 and name.endswith(REBINDING)):
            for address in map(ipaddress.ip_address, self.addresses(name)):
                if address.version == (4 if kind == 1 else 6):
                    records.append(owner + struct.pack("!HHIH", kind, 1, 0, len(address.packed)) + address.packed)
        return data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(records), 0, 0) + question + b"".join(records)


# -- TCP --------------------------------------------------------------------------------------------


async def listen(log, address, port, handler, tls=None):
    """Accepts by hand: what arrives is logged before any handshake."""
    loop = asyncio.get_running_loop()
    sock = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                                backlog=1024, dualstack_ipv6=address == "::")
    sock.setblocking(False)

    async def one(client):
        dst, port = client.getsockname()[:2]
        dst, peer = plain(dst), plain(client.getpeername()[0])
        log("tcp", dst=dst, port=port, peer=peer)
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await handler(reader, writer, dst=dst, port=port)
            finally:
                transport.close()
        except (OSError, EOFError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            log("end", dst=dst, port=port)

    async def accept():
        while True:
            client, _ = await loop.sock_accept(sock)
            keep(one(client))

    keep(accept())


tasks = set()


def keep(coroutine):
    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def body_of(reader, headers):
    """As a server that lets Transfer-Encoding win."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        while (await reader.readline()).strip():
            pass
        return body
    return await reader.readexactly(int(headers.get("content-length", "0")))


async def head_of(reader):
    line = (await reader.readline()).decode("latin1").strip()
    if not line:
        return None, {}
    headers = {}
    while text := (await reader.readline()).decode("latin1").strip():
        name, _, value = text.partition(":")
        headers[name.strip().lower()] = value.strip()
    return line, headers


class Http:
    def __init__(self, log, dir):
        self.log, self.dir = log, dir

    async def __call__(self, reader, writer, dst, port):
        tls = writer.get_extra_info("ssl_object")
        while True:
            line, headers = await head_of(reader)
            if not line:
                return
            method, target, *_ = line.split(" ")
            host = headers.get("host", "")
            self.log("http", method=method, host=host, path=target, dst=dst, port=port, tls=bool(tls),
                     sni=getattr(tls, "asked", None), authorization=headers.get("authorization"))
            body = await body_of(reader, headers)
            target = target if target.startswith("/") else "/" + target.split("/", 3)[-1]
            path, _, query = target.partition("?")
            path = urllib.parse.unquote(path)
            first, _, rest = path[1:].partition("/")
            kind, status = "text/plain", "200 OK"
            found = registry(f"http{'s' if tls else ''}://{host}/{first}", "/" + rest)
            if rest.startswith("repo.git/"):
                status, kind, content = await self.git(method, "/" + rest, query, headers, body)
            elif found:
                kind, content = found
            elif first == "echo":
                kind, content = "application/json", json.dumps(headers).encode()
            else:
                content = f"reached {host} {path} at {dst}:{port}\n".encode()
                if size := headers.get("x-size"):
                    content += b"x" * int(size)
            writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
                         "Cache-Control: no-cache\r\n\r\n".encode() + (b"" if method == "HEAD" else content))
            await writer.drain()
            if headers.get("connection", "").lower() == "close":
                return

    async def git(self, method, path, query, headers, body):
        env = {
            "PATH": os.environ["PATH"], "HOME": self.dir, "GIT_PROJECT_ROOT": f"{self.dir}/srv",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method, "GIT_CONFIG_NOSYSTEM": "1",
            "CONTENT_TYPE": headers.get("content-type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
        }
        child = await asyncio.create_subprocess_exec("git", "http-backend", stdin=subprocess.PIPE,
                                                     stdout=subprocess.PIPE, env=env)
        out, _ = await child.communicate(body)
        head, _, content = out.partition(b"\r\n\r\n")
        given = dict(l.split(": ", 1) for l in head.decode().split("\r\n") if ": " in l)
        return given.get("Status", "200 OK"), given.get("Content-Type", "text/plain"), content


def server_first(log):
    async def serve(reader, writer, dst, port):
        writer.write(b"hello from the server\n")
        while line := await reader.readline():
            log("line", text=line.decode("latin1").strip(), dst=dst, port=port)
            writer.write(b"reached " + line)
    return serve


def client_first(log):
    async def serve(reader, writer, dst, port):
        while data := await reader.read(65536):
            log("line", text=data[:200].decode("latin1"), dst=dst, port=port)
            writer.write(b"reached " + data)
            await writer.drain()
    return serve


class Echo(asyncio.DatagramProtocol):
    def __init__(self, log, dst, port):
        self.log, self.dst, self.port = log, dst, port

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.log("udp", dst=self.dst, port=self.port, text=data[:200].decode("latin1"))
        self.transport.sendto(b"reached " + data, peer)


def pings(log, family, protocol, kind, at):
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setblocking(False)

    def ready():
        data, peer = sock.recvfrom(65536)
        if data[at:at + 1] == bytes([kind]):
            log("icmp", text=data[at + 8:].decode("latin1"))
    asyncio.get_running_loop().add_reader(sock, ready)


async def internet(dir):
    log = Log(dir)
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(f"{dir}/tls.pem", f"{dir}/tls.key")

    def asked(session, name, _):
        session.asked = name
        log("hello", sni=name)
    tls.sni_callback = asked
    http, dns = Http(log, dir), Dns(log)
    await listen(log, "::", 53, dns.stream)
    for at in [DNS4, DNS6]:
        await loop.create_datagram_endpoint(lambda: Dns(log), local_addr=(at, 53))
    for port in HTTP_PORTS:
        await listen(log, "::", port, http)
    for port in TLS_PORTS:
        await listen(log, "::", port, http, tls)
    await listen(log, "::", SERVER_FIRST, server_first(log))
    await listen(log, "::", CLIENT_FIRST, client_first(log))
    for at in UDP_PLACES:
        for port in UDP_PORTS:
            await loop.create_datagram_endpoint(lambda at=at, port=port: Echo(log, at, port), local_addr=(at, port))
    pings(log, socket.AF_INET, socket.IPPROTO_ICMP, 8, 20)
    pings(log, socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 0)


def sshd(dir):
    program = next((p for p in ["/usr/sbin/sshd", "/usr/local/sbin/sshd"] if os.path.exists(p)), None)
    if not program:
        return
    # Its user and its directory, in this namespace's view only.
    with open(f"{dir}/passwd.sshd", "w") as f:
        f.write(f"git:x:{os.getuid()}:{os.getgid()}::{dir}:/bin/sh\nsshd:x:54400:54400::/run/sshd:/bin/false\n")
    with open(f"{dir}/shadow", "w") as f:
        f.write("git:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n")
    run("mount", "--bind", f"{dir}/passwd.sshd", "/etc/passwd")
    if os.path.exists("/etc/shadow"):
        run("mount", "--bind", f"{dir}/shadow", "/etc/shadow")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    os.makedirs("/run/sshd", 0o755)
    with open(f"{dir}/sshd.conf", "w") as f:
        f.write(f"Port 22\nListenAddress 0.0.0.0\nListenAddress ::\nHostKey {dir}/host\nPidFile none\n"
                f"AuthorizedKeysFile {dir}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
                "PasswordAuthentication no\nLogLevel VERBOSE\nUseDNS no\nMaxStartups 1000\n")
    with open(f"{dir}/sshd.log", "w") as f:
        subprocess.Popen([program, "-D", "-e", "-f", f"{dir}/sshd.conf"], stdin=subprocess.DEVNULL, stderr=f,
                         stdout=f, preexec_fn=die_with_parent)


def main_internet(dir):
    sys.stdin.readline()  # the cable is there
    ip("link set lo up", "link set net0 up", f"addr add {GATE4}/30 dev net0", f"addr add {GATE6}/64 dev net0 nodad",
       f"addr add {DNS6}/128 dev lo nodad", *(f"route add local {n} dev lo" for n in NETWORKS))
    # What was generated meanwhile.
    sys.stdin.readline()
    sshd(dir)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(internet(dir))
    print("ready", flush=True)
    loop.run_forever()


# -- the host ---------------------------------------------------------------------------------------


def bind(dir, name, text, over):
    if not os.path.exists(over):
        return
    path = f"{dir}/{name}"
    with open(path, "w") as f:
        f.write(text)
    run("mount", "--bind", path, os.path.realpath(over))


def read(path):
    try:
        with open(path, errors="surrogateescape") as f:
            return f.read()
    except OSError:
        return ""


async def naive_proxy(reader, writer):
    """What the attacks are made for: a proxy that decides nothing, takes names as C does, and looks
    at the first request only. The controls go through it."""
    loop = asyncio.get_running_loop()
    try:
        first = await reader.readexactly(1)
        rest = b""
        if first == b"\x05":
            await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(b"\x05\x00")
            _, _, _, kind = await reader.readexactly(4)
            if kind == 3:
                host = await reader.readexactly((await reader.readexactly(1))[0])
            else:
                packed = await reader.readexactly(4 if kind == 1 else 16)
                host = str(ipaddress.ip_address(packed)).encode()
            port = int.from_bytes(await reader.readexactly(2), "big")
            said = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
        else:
            head = first + await reader.readuntil(b"\r\n\r\n")
            line, _, others = head.partition(b"\r\n")
            method, target, version = line.split(b" ", 2)
            if method == b"CONNECT":
                where, said = target, b"HTTP/1.1 200 OK\r\n\r\n"
            else:
                where, _, path = target.split(b"//", 1)[1].partition(b"/")
                rest, said = method + b" /" + path + b" " + version + b"\r\n" + others, b""
            host, colon, port = where.rpartition(b":")
            if where.endswith(b"]") or not colon:
                host, port = where, b"80"
            port, host = int(port), host.strip(b"[]")
        host = host.split(b"\0")[0].decode("latin1")
        out_reader, out = await asyncio.open_connection(host, port)
        writer.write(said)
        out.write(rest)

        async def copy(source, target):
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
                target.write_eof()
            except OSError:
                pass
        await asyncio.gather(copy(reader, out), copy(out_reader, writer))
        out.close()
    except (OSError, EOFError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def host(dir):
    log = Log(dir)

    async def secret(reader, writer, dst, port):
        line, headers = await head_of(reader)
        log("secret", line=line, dst=dst, port=port)
        path = (line or "").split(" ")[1:2]
        body = f"reached the host's own {''.join(path)} at {dst}:{port}\n".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    for port in [7001, 7002]:
        await listen(log, "127.0.0.1", port, secret)
        await listen(log, "::1", port, secret)
    await listen(log, "0.0.0.0", 7003, secret)

    async def abstract(reader, writer):
        log("abstract", text=(await reader.readline()).decode("latin1"))
        writer.write(b"reached an abstract socket\n")
        writer.close()
    await asyncio.start_unix_server(abstract, "\0ringfence-world-" + os.path.basename(dir))
    for at in ["127.0.0.1", "::1"]:
        await asyncio.start_server(naive_proxy, at, 3128)


def main_hold(dir, uids):
    for s in [signal.SIGINT, signal.SIGHUP, signal.SIGTERM]:
        signal.signal(s, signal.SIG_IGN)  # the end of standard input ends this
    other = subprocess.Popen(
        ["unshare", "-n", "-m", "-p", "-f", "--kill-child", PYTHON, "-I", __file__, "internet", dir],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    os.makedirs(f"{dir}/srv")
    failed = []

    def also(work):
        def guarded():
            try:
                work(dir)
            except Exception as e:  # told by the main thread
                failed.append(e)
        thread = threading.Thread(target=guarded)
        thread.start()
        return thread
    passwd = read("/etc/passwd")
    for uid in uids:
        if f":{uid}:" not in passwd:
            passwd += f"tester{uid}:x:{uid}:{uid}::/nonexistent:/bin/sh\n"
    bind(dir, "passwd", passwd, "/etc/passwd")
    bind(dir, "resolv.conf", f"nameserver {DNS4}\noptions timeout:2 attempts:2\n", "/etc/resolv.conf")
    bind(dir, "hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
         "10.1.2.3 hosts-private.example.com\n45.10.0.2 hosts-public.example.com\n", "/etc/hosts")
    bind(dir, "nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n", "/etc/nsswitch.conf")
    threads = [also(certificates), also(keys), also(repository)]
    # `unshare` is in the other namespace as soon as it has made it; before, both are ours.
    while os.readlink(f"/proc/{other.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        if other.poll() is not None:
            sys.exit("the second namespace could not be made")
    ip("link set lo up", f"link add host0 type veth peer name net0 netns {other.pid}",
       f"addr add {HOST4}/30 dev host0", f"addr add {HOST6}/64 dev host0 nodad", "link set host0 up",
       f"route add default via {GATE4}", f"route add default via {GATE6}")
    other.stdin.write("\n")
    other.stdin.flush()
    try:
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as f:
            f.write("0 2147483647" if os.getuid() == 0 else f"{os.getgid()} {os.getgid()}")
    except OSError as e:
        print(f"ping_group_range: {e}", file=sys.stderr)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(host(dir))
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"{failed}")
    store = "/etc/ssl/certs/ca-certificates.crt"
    bind(dir, "ca-certificates.crt", read(store) + read(f"{dir}/ca.pem"), store)
    other.stdin.write("\n")
    other.stdin.flush()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    if other.stdout.readline() != "ready\n":
        sys.exit("the internet did not come up")
    print("ready", flush=True)
    while sys.stdin.buffer.read(65536):
        pass
    other.kill()
    shutil.rmtree(dir, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        try:
            main_hold(sys.argv[2], sys.argv[3:])
        except BaseException:
            shutil.rmtree(sys.argv[2], ignore_errors=True)
            raise
    else:
        main_internet(sys.argv[2])
