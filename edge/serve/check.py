"""Ask a server the fixed question of the health gate, over HTTP as its clients will."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from boardfit.edge.errors import EngineError
from boardfit.edge.slots.health import MAX_TOKENS, PROMPT, Health

_ANSWER_S = 600.0


def check_server(url: str, token: str | None) -> Health:
    """Health of the model behind a server. Never raises for one that does not work."""
    try:
        return _ask(url, token)
    except (EngineError, OSError, ValueError, LookupError, TypeError) as error:
        return Health(error=str(error) or type(error).__name__, error_kind=type(error).__name__)


def _ask(url: str, token: str | None) -> Health:
    began_s = time.monotonic()
    limits = {"max_tokens": MAX_TOKENS, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": PROMPT}], **limits}
    status, answer = _post(f"{url}/v1/chat/completions", chat, token)
    if status == 400:  # a model without a chat template continues plain text
        status, answer = _post(f"{url}/v1/completions", {"prompt": PROMPT, **limits}, token)
    if status != 200:
        message = answer.get("error", {}).get("message", "no message")
        raise EngineError(f"{url} answers {status}: {message}")
    choice, facts = answer["choices"][0], answer["edge"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Health(
        text=text,
        n_out=answer["usage"]["completion_tokens"],
        load_s=None,
        ttft_s=min(float(facts["first_s"]), time.monotonic() - began_s),
        decode_tps=answer["timings"]["predicted_per_second"],
        engine="edge serve",
    )


def _post(url: str, body: dict[str, Any], token: str | None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWER_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")
