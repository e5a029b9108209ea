"""Call a gateway over HTTP, and turn whatever goes wrong into one sentence for its caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from iccm_assets.errors import GatewayError, first_line

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_SECONDS = 5.0
# Longer than the gateway's own timeout of a request, whose answer says more.
READ_TIMEOUT_SECONDS = 60.0
_MAX_DETAIL_CHARS = 500
_HINTS = {
    401: "Set ICCM_CLIENT__TOKEN to a token that the gateway accepts.",
    404: "A response is stored within seconds of being sent; try again, or check the id.",
    409: "Use a session_id of your own, or none.",
    410: "Its data were erased on request and must not be sent again; use a new session.",
    413: "Send a smaller part of the code.",
}


class GatewayHttpClient:
    """Calls the JSON API of one gateway; a connection for each call, as calls of an agent are rare."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url, self._token = url.rstrip("/"), token

    async def post(self, path: str, body: Mapping[str, Any], token: str = "") -> dict[str, Any]:
        """Post a JSON body; ``token`` replaces the client's own.

        Raises ``GatewayError`` with one sentence if there is no response, or one that is not a success.
        """
        import httpx2  # 0.13 s: only where a gateway is called

        used = token or self._token
        try:
            async with httpx2.AsyncClient(
                timeout=httpx2.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
                headers={"authorization": f"Bearer {used}"} if used else {},
                trust_env=False,
            ) as client:
                response = await client.post(f"{self.url}{path}", json=body)
        except httpx2.ConnectError:
            raise GatewayError(
                f"no gateway answers at {self.url}", hint="Start it with `iccm serve` or `iccm dev`."
            ) from None
        except httpx2.TimeoutException:
            raise GatewayError(
                f"the gateway at {self.url} did not answer in time", hint="Try again."
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeEncodeError) as error:
            raise GatewayError(f"calling {self.url} failed: {first_line(error)}") from None
        return _read(response, self.url)


def check_gateway(url: str) -> tuple[bool, str]:
    """Ask a gateway whether it is ready; return the answer and the reason."""
    import httpx2

    try:
        response = httpx2.get(f"{url}/readyz", timeout=CONNECT_TIMEOUT_SECONDS, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return False, f"no gateway answers at {url} ({first_line(error)})"
    if response.status_code == 200:
        return True, f"the gateway at {url} is ready"
    return False, f"the gateway at {url} is not ready: {_get_detail(response)}"


def _read(response: httpx2.Response, url: str) -> dict[str, Any]:
    """Return the document of a success; raise the detail of a problem document."""
    if response.status_code == 200:
        try:
            document = response.json()
        except ValueError:
            document = None
        if isinstance(document, dict):
            return document
        raise GatewayError(f"{url} answers with something that is no JSON object: is it a gateway?")
    hint = _HINTS.get(response.status_code, "")
    if response.status_code in {429, 503, 504}:
        seconds = response.headers.get("retry-after", "")
        hint = f"Try again in {seconds} s." if seconds.isdigit() else "Try again later."
    raise GatewayError(f"the gateway answers {response.status_code}: {_get_detail(response)}", hint=hint)


def _get_detail(response: httpx2.Response) -> str:
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError):
        document = None
    detail = document.get("detail") if isinstance(document, dict) else None
    return detail[:_MAX_DETAIL_CHARS] if isinstance(detail, str) and detail else response.reason_phrase
