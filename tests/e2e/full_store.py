"""Passes an S3 server's requests on; while /tmp/full is there it takes no more, in the words of MinIO when it is full.

python full_store.py ADDRESS
"""

import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 7070
FULL = (
    b"<Error><Code>XMinioStorageFull</Code>"
    b"<Message>Storage backend has reached its minimum free drive threshold.</Message></Error>"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command in ("PUT", "POST") and Path("/tmp/full").exists():
            self.finish_with(507, {"Content-Type": "application/xml"}, FULL)
            return
        there = http.client.HTTPConnection(sys.argv[1], PORT, timeout=60)
        there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            there.putheader(name, value)
        there.endheaders(body)
        found = there.getresponse()
        self.finish_with(found.status, dict(found.getheaders()), found.read())

    def finish_with(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names are the library's


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
