"""A hub for tests: the routes of the Hugging Face hub over repositories in memory, on 127.0.0.1, and faults on demand.

  hub = HubServer(); hub.add("org/name", {"config.json": b"{}", "model.safetensors": data}, lfs={"model.safetensors"})
  hub.fault("model.safetensors", cut=1000)      # the next answer for that file breaks off after 1,000 bytes

GET /api/models/ID/revision/REV?blobs=true and .../tree/REV, GET and HEAD /ID/resolve/REV/FILE. Large files are answered by a redirect to a
second server, as by a storage network; that one refuses an Authorization header.
"""
import collections
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
import urllib.parse


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    def __init__(self, files, lfs, commit, token, gated, private):
        self.files, self.lfs, self.commit = dict(files), set(lfs), commit
        self.token, self.gated, self.private = token, gated, private
        self.revisions = {"main": commit, commit: commit}

    def etag(self, name):
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name in self.lfs else git_sha1(data)


class HubServer:
    def __init__(self):
        self.repos = {}
        self.requests = []  # (server, method, path, range)
        self.faults = collections.defaultdict(collections.deque)
        self.lock = threading.Lock()
        self.bare = False       # listings without sizes and hashes
        self.no_ranges = False  # every answer is whole
        self.active = self.most_active = 0
        self.hub = self._start("hub")
        self.storage = self._start("storage")
        self.endpoint = "http://127.0.0.1:%d" % self.hub.server_address[1]
        self.storage_url = "http://127.0.0.1:%d" % self.storage.server_address[1]

    def add(self, repo, files, lfs=(), commit=None, token=None, gated=False, private=False):
        commit = commit or hashlib.sha1(repo.encode() + b"".join(sorted(files.values()))).hexdigest()
        self.repos[repo] = Repo(files, lfs, commit, token, gated, private)
        return self.repos[repo]

    def fault(self, what, times=1, **how):
        """For a file's name, or "api". how: status, headers, cut (bytes), slow (seconds a kB), wrong (other content), grow
        (bytes more than promised), stall (seconds before the answer), bad_range."""
        self.faults[what].extend([how] * times)

    def take_fault(self, what):
        with self.lock:
            return self.faults[what].popleft() if self.faults[what] else {}

    def count(self, text, server=None):
        return sum(text in path for where, _, path, _ in self.requests if server in (None, where))

    def close(self):
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()

    def _start(self, name):
        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # a client that goes away is part of the tests
        server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"outer": self, "name": name}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    outer = name = None

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.outer.requests.append((self.name, self.command, self.path, self.headers.get("Range")))
        path = urllib.parse.urlparse(self.path).path
        if self.name == "storage":
            if self.headers.get("Authorization"):
                return self.refuse(400, "", "a token that is not for us")
            _, org, name, file = path.split("/", 3)
            return self.content(self.outer.repos[f"{org}/{name}"], urllib.parse.unquote(file), with_body, {})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not api and not resolve:
            return self.refuse(404, "", "no such route")
        repo_id, revision = (api or resolve).group(1), urllib.parse.unquote((api or resolve).group(2))
        repo = self.outer.repos.get(repo_id)
        fault = self.outer.take_fault("api") if api else {}
        if fault and self.fail(fault):
            return None
        refusal = self.refusal(repo, revision)
        if refusal:
            return self.refuse(*refusal)
        if api and "/tree/" in path:
            return self.tree(repo)
        if api:
            return self.listing(repo, revision)
        return self.resolve(repo_id, repo, urllib.parse.unquote(resolve.group(3)), revision, with_body)

    def refusal(self, repo, revision):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None or (repo.private and token != repo.token):
            return (404 if token else 401), "RepoNotFound", "Repository not found"
        if repo.gated and token != repo.token:
            return (403 if token else 401), "GatedRepo", "Access to this model is restricted"
        if revision not in repo.revisions:
            return 404, "RevisionNotFound", "Invalid rev id"
        return None

    def refuse(self, status, code, message, headers=None):
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, fault):
        if "stall" in fault:
            time.sleep(fault["stall"])
        if "status" in fault:
            self.refuse(fault["status"], fault.get("code", ""), "fault", fault.get("headers"))
            return True
        return False

    def listing(self, repo, revision):
        siblings = []
        for name, data in repo.files.items():
            entry = {"rfilename": name}
            if not self.outer.bare:
                entry.update({"size": len(data), "blobId": git_sha1(data)})
                if name in repo.lfs:
                    entry["lfs"] = {"sha256": repo.etag(name), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        self.send_json({"id": "x", "sha": repo.revisions[revision], "siblings": siblings, "tags": []})

    def tree(self, repo):  # what huggingface_hub asks for
        entries = []
        for name, data in repo.files.items():
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
            if name in repo.lfs:
                entry["lfs"] = {"oid": repo.etag(name), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self.send_json(entries)

    def send_json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def resolve(self, repo_id, repo, file, revision, with_body):
        if file not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": repo.revisions[revision]}
        if file not in repo.lfs:
            return self.content(repo, file, with_body, headers)
        self.send_response(302)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("X-Linked-Etag", '"%s"' % repo.etag(file))
        self.send_header("X-Linked-Size", str(len(repo.files[file])))
        self.send_header("ETag", '"%s"' % repo.etag(file))
        self.send_header("Location", f"{self.outer.storage_url}/{repo_id}/{urllib.parse.quote(file)}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def content(self, repo, file, with_body, headers):
        outer, data = self.outer, repo.files[file]
        fault = outer.take_fault(file)
        if self.fail(fault):
            return
        begin = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and not outer.no_ranges:
            begin = int(wanted.group(1))
            if begin >= len(data):
                return self.refuse(416, "", "range", {"Content-Range": f"bytes */{len(data)}"})
        body = data[begin:]
        if fault.get("wrong"):
            body = bytes(byte ^ 1 for byte in body)
        if fault.get("grow"):
            body += b"x" * fault["grow"]
        self.send_response(206 if begin else 200)
        if begin:
            shown = begin + 7 if fault.get("bad_range") else begin
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        for key, value in {**headers, "ETag": '"%s"' % (repo.etag(file) if file not in repo.lfs else "storage-own"),
                           "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.send_body(body, fault)

    def send_body(self, body, fault):
        outer = self.outer
        with outer.lock:
            outer.active += 1
            outer.most_active = max(outer.most_active, outer.active)
        try:
            limit = fault.get("cut", len(body))
            for at in range(0, limit, 1024):
                self.wfile.write(body[at:min(at + 1024, limit)])
                if "slow" in fault:
                    self.wfile.flush()
                    time.sleep(fault["slow"])
            if limit < len(body):
                self.wfile.flush()
                # A reset, not a clean end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
        finally:
            with outer.lock:
                outer.active -= 1
