"""An issuer of ID tokens, as a CI has one."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

REPOSITORY = "northbank/policies"
AUDIENCE = "licet:northbank/github"
_NUMBERS = count()


class Issuer:
    """An issuer of ID tokens on loopback: discovery, keys, and a door like that of GitHub Actions."""

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(65537, 2048)}
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                told: Any = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                if parts.path == "/keys":
                    issuer.asked += 1
                    told = issuer.published()
                elif parts.path == "/id-token":
                    assert self.headers["Authorization"] == "Bearer runner"
                    told = {"value": issuer.token(aud=parse_qs(parts.query)["audience"][0])}
                body = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def published(self) -> dict[str, Any]:
        return {
            "keys": [
                {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
                for kid, key in self.keys.items()
            ]
        }

    def token(self, kid: str = "one", **changes: Any) -> str:
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": f"repo:{REPOSITORY}:ref:refs/heads/main",
            "repository": REPOSITORY,
            "ref": "refs/heads/main",
            "sha": "0123456789abcdef",
            "run_id": "4711",
            "event_name": "push",
            "iat": now_s,
            "exp": now_s + 300,
            "jti": str(next(_NUMBERS)),
        }
        return jwt.encode(claims | changes, self.keys[kid], "RS256", {"kid": kid})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
