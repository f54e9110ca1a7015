"""Logging in to a camera over HTTP or RTSP: Digest with SHA-256 or MD5 (RFC 7616), and Basic.

urllib's own handlers look at the first offer of a camera alone, and know no SHA-256 before Python 3.14.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import urllib.request
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

_SCHEME = re.compile(r"([!#$%&'*+.^_`|~\w-]+)(?:\s+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([\w*-]+)\s*=\s*(.*)", re.DOTALL)
_HASHES: dict[str, Callable[[bytes], Any]] = {
    "SHA-256": hashlib.sha256,
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False),
}
# The first one may be to a nonce that has just run out; a camera that calls each one stale must not keep us for ever.
_MOST_ANSWERS = 2


class Challenge(NamedTuple):
    """One way to log in, as a server offers it.

    Attributes:
        scheme: in lower case, such as "digest".
        fields: its parameters by name in lower case, without quotes.
    """

    scheme: str
    fields: dict[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """All that a server offers, also several in one header.

    Args:
        headers: values of WWW-Authenticate.

    Example:
        >>> [offer.scheme for offer in challenges(['Digest realm="a, b", nonce="n", algorithm=MD5, Basic realm="c"'])]
        ['digest', 'basic']
    """
    found: list[Challenge] = []
    for header in headers:
        for item in urllib.request.parse_http_list(header):
            parameter = _PARAMETER.fullmatch(item)
            if parameter is None and (scheme := _SCHEME.fullmatch(item)):
                found.append(Challenge(scheme[1].lower(), {}))
                parameter = _PARAMETER.fullmatch(scheme[2] or "")
            if parameter is not None and found:
                found[-1].fields[parameter[1].lower()] = parameter[2].strip().removeprefix('"').removesuffix('"')
    return found


def authorization(offers: Iterable[Challenge], user: str, password: str, method: str, uri: str) -> str | None:
    """The answer to the strongest offer; None where none can be answered.

    Args:
        offers: of the server.
        user: name.
        password: never sent as it is, but with Basic.
        method: of the request, such as "GET".
        uri: of the request as it is sent.
    """
    offers = list(offers)
    for name in _HASHES:
        for offer in offers:
            algorithm = offer.fields.get("algorithm", "MD5").upper()
            if offer.scheme == "digest" and algorithm.removesuffix("-SESS") == name and _has_auth(offer):
                return _digest(offer, algorithm, user, password, method, uri)
    if any(offer.scheme == "basic" for offer in offers):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


class Login(urllib.request.BaseHandler):
    """Answers a camera that asks for user and password; on other hosts, where a redirect leads, it does not.

    Args:
        host: address of the camera.
        user: None never answers.
        password: of the user.
    """

    def __init__(self, host: str, user: str | None, password: str) -> None:
        self._passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if user is not None:
            self._passwords.add_password(None, host, user, password)

    def http_error_401(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        """Asks again with an answer to what the camera offers; without one, or after a refusal, the 401 stays."""
        fp.close()
        user, password = self._passwords.find_user_password(None, req.full_url)
        offers = challenges(headers.get_all("WWW-Authenticate", []))
        answers = getattr(req, "answers", 0)
        is_stale = any(offer.fields.get("stale", "").lower() == "true" for offer in offers)
        if user is None or password is None or answers >= (_MOST_ANSWERS if is_stale else 1):
            return None
        answer = authorization(offers, user, password, req.get_method(), req.selector)
        if answer is None:
            return None
        vars(req)["answers"] = answers + 1
        # Not sent on by a redirect.
        req.add_unredirected_header("Authorization", answer)
        return self.parent.open(req, timeout=req.timeout)


def _has_auth(offer: Challenge) -> bool:
    return "qop" not in offer.fields or "auth" in _qualities(offer)


def _qualities(offer: Challenge) -> list[str]:
    return [part.strip().lower() for part in offer.fields["qop"].split(",")]


def _digest(offer: Challenge, algorithm: str, user: str, password: str, method: str, uri: str) -> str:
    function = _HASHES[algorithm.removesuffix("-SESS")]

    def hashed(*parts: str) -> str:
        return str(function(":".join(parts).encode()).hexdigest())

    realm, nonce, made = offer.fields.get("realm", ""), offer.fields.get("nonce", ""), secrets.token_hex(8)
    secret, request = hashed(user, realm, password), hashed(method, uri)
    if algorithm.endswith("-SESS"):
        secret = hashed(secret, nonce, made)
    # Header lines are Latin-1: the bytes of UTF-8 pass as they are.
    name = user.encode().decode("latin-1").replace("\\", r"\\").replace('"', r"\"")
    fields = [f'username="{name}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{uri}"']
    if "qop" in offer.fields:
        response = hashed(secret, nonce, "00000001", made, "auth", request)
        fields += ["qop=auth", "nc=00000001", f'cnonce="{made}"']
    else:
        response = hashed(secret, nonce, request)
    fields.append(f'response="{response}"')
    if "algorithm" in offer.fields:
        fields.append(f"algorithm={offer.fields['algorithm']}")
    if "opaque" in offer.fields:
        fields.append(f'opaque="{offer.fields["opaque"]}"')
    return "Digest " + ", ".join(fields)
