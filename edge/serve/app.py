"""The ASGI application: a table of routes, and how an answer reaches its client."""

import asyncio
import contextlib
import functools
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.edge.engines.target import OpenModel
from boardfit.edge.serve.access import AccessRules
from boardfit.edge.serve.ask import Ask, Carried, Defaults, read_headers, split_model
from boardfit.edge.serve.body import RequestFields, parse_json
from boardfit.edge.serve.counters import CONTENT_TYPE
from boardfit.edge.serve.job import Begun, Ended, Job
from boardfit.edge.serve.openapi import describe_server, drop_limits
from boardfit.edge.serve.queue import LOG, AnswerQueue
from boardfit.edge.serve.refused import RequestRefused, refusal_of
from boardfit.edge.serve.vectors import VectorAsk, VectorQueue, Vectors
from boardfit.edge.serve.wire import anthropic, embeddings, native, ollama, openai, responses
from boardfit.edge.serve.wire.base import JSON, Writer, dump, openai_error
from boardfit.edge.types import TokenEvent

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 1 << 20
RECEIPT_S = 10.0
#: A client that takes nothing for so long is given up.
STALL_S = 15.0
PING_S = 10.0
#: How long the rest of a refused body is taken.
DRAIN_S = 2.0
#: Times that are listed as models, for clients that can choose nothing but a model.
LISTED = ("2s", "5s", "15s")
#: The version of Ollama whose calls these are. Clients refuse one that is no number.
OLLAMA_VERSION = "0.33.0"
PAGE = Path(__file__).parent / "page"
_PAGE_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
}
#: Nothing from elsewhere, no HTML made from text, no frame around it.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_WITHIN = re.compile(r"/within/([0-9a-z.]{1,12})(/.*)")
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class Call(NamedTuple):
    """One request, its path and limits taken apart."""

    method: str
    path: str
    headers: Mapping[str, str]
    carried: Carried
    receive: Receive
    send: Send


Reader = Callable[[RequestFields, Carried, Defaults], Ask]


#: What answers with tokens: the wire's reader and writer.
ANSWERS: dict[str, tuple[Reader, type[Writer]]] = {
    "/v1/chat/completions": (openai.read_chat, openai.ChatWriter),
    "/v1/completions": (openai.read_completion, openai.CompletionWriter),
    "/v1/responses": (responses.read_responses, responses.ResponsesWriter),
    "/v1/messages": (anthropic.read_request, anthropic.MessagesWriter),
    "/api/chat": (ollama.read_chat, ollama.OllamaWriter),
    "/api/generate": (ollama.read_generate, ollama.GenerateWriter),
}

#: What is computed beside the engine: the reader of a request, and what answers it.
COMPUTED: dict[str, tuple[Callable[[RequestFields], Any], Callable[[Any, OpenModel], Any]]] = {
    "/tokenize": (native.read_tokenize, native.tokenize),
    "/detokenize": (native.read_detokenize, native.detokenize),
}
#: What answers with vectors: the wire's reader and writer.
VECTORS = {
    "/v1/embeddings": (embeddings.read_openai, embeddings.write_openai),
    "/api/embed": (embeddings.read_ollama, embeddings.write_ollama),
}
#: Errors of other forms than OpenAI's, by the beginning of the path.
_ERRORS: dict[str, Callable[[RequestRefused], dict[str, Any]]] = {
    "/api/": lambda refused: {"error": refused.message},
    "/v1/messages": anthropic.write_error,
}


class App:
    """Answers HTTP requests from a queue."""

    def __init__(
        self, queue: AnswerQueue, access: AccessRules, defaults: Defaults | None = None
    ) -> None:
        self._queue, self._access = queue, access
        self._defaults = defaults or Defaults()
        self._started = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Call], Awaitable[int]]] = {
            **{("POST", path): self._ask(*wire) for path, wire in ANSWERS.items()},
            **{("POST", path): self._compute(*call) for path, call in COMPUTED.items()},
            **{("POST", path): self._embed(*wire) for path, wire in VECTORS.items()},
            ("GET", "/props"): self._get(self._props),
            ("GET", "/slots"): self._get(self._slots),
            ("GET", "/tokenizer_info"): self._get(self._tokenizer),
            ("POST", "/api/show"): self._show,
            ("POST", "/v1/messages/count_tokens"): self._count_tokens,
            ("POST", "/edge/v1/predict"): self._predict,
            ("GET", "/v1/models"): self._get(self._models),
            ("GET", "/api/tags"): self._get(self._tags),
            ("GET", "/api/ps"): self._get(self._loaded),
            ("GET", "/api/version"): self._get(lambda: {"version": OLLAMA_VERSION}),
            ("GET", "/edge/v1/status"): self._get(self._status),
            ("GET", "/edge/v1/plan"): self._get(self._plan),
            ("GET", "/"): self._asset,
            ("GET", "/openapi.json"): self._get(self._describe),
            ("GET", "/health"): self._get(lambda: {"status": "ok"}),
            ("GET", "/ready"): self._get(self._ready),
            ("GET", "/metrics"): self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        method, path = scope["method"], scope["path"]
        route, cors = "other", self._access.cors_headers(headers.get("origin"))

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = {**_SAFE, **cors}
                message["headers"] += [(k.encode(), v.encode("latin-1")) for k, v in extra.items()]
            await asyncio.wait_for(send(message), STALL_S)

        call = Call(method, path, headers, Carried(), receive, send_safely)
        try:
            self._access.check(method, scope["raw_path"], headers)
            carried = read_headers(headers)
            if match := _WITHIN.fullmatch(path):
                carried, path = replace(carried, within=match[1]), match[2]
            call = call._replace(path=path, carried=carried)
            handler, route = self._find(method, path)
            status = await handler(call)
        except RequestRefused as refused:
            status = await self._refuse(call, refused)
        except (asyncio.TimeoutError, ConnectionError):
            status = 499  # the client is gone, or takes nothing
        except Exception as error:
            LOG.error("%s %s: %s", method, route, type(error).__name__)
            status = await self._refuse(call, refusal_of(error))
        self._queue.counters.count_request(route, status)

    def _find(self, method: str, path: str) -> tuple[Callable[[Call], Awaitable[int]], str]:
        path = path.rstrip("/") or "/"
        if method == "OPTIONS":
            return self._preflight, "preflight"
        wanted = "GET" if method == "HEAD" else method
        if (handler := self._routes.get((wanted, path))) is not None:
            return handler, path
        if path.startswith("/page/") and wanted == "GET":
            return self._asset, "/page"
        if path.startswith("/v1/models/") and wanted == "GET":
            return self._model, "/v1/models/{id}"
        allowed = [each for each, known in self._routes if known == path]
        if allowed:
            raise RequestRefused(
                405, f"{path} takes {allowed[0]}", headers={"Allow": ", ".join(allowed)}
            )
        raise RequestRefused(404, "there is no such path")

    # ---- questions ----------------------------------------------------------------------------

    def _ask(self, read: Reader, writer_class: type[Writer]) -> Callable[[Call], Awaitable[int]]:
        """A handler that answers with tokens."""

        async def handle(call: Call) -> int:
            body = parse_json(await read_body(call))
            name, carried = self._split(body, call.carried)
            if call.path in ("/api/chat", "/api/generate") and _only_loads(body):
                return await self._load_only(call, body)
            ask = read(body, carried, self._defaults)
            job = await self._queue.submit(ask)
            writer = writer_class(self._name(name), job.ask)
            give_up = functools.partial(self._queue.give_up, job)
            gone = asyncio.create_task(wait_gone(call.receive, give_up))
            try:
                if ask.stream:
                    return await stream_answer(call, job, writer)
                return await whole_answer(call, job, writer)
            finally:
                self._queue.give_up(job)  # does nothing where the answer has ended
                gone.cancel()

        return handle

    async def _load_only(self, call: Call, body: RequestFields) -> int:
        """Ollama's clients load and unload with an empty question; the model is always loaded."""
        self._queue.use()
        keep = body.get("keep_alive")
        reason = "unload" if keep in (0, "0", "0s") else "load"
        head = {"model": self._name(body.text("model")), "created_at": "1970-01-01T00:00:00Z"}
        said = {"message": {"role": "assistant", "content": ""}}
        rest = said if call.path == "/api/chat" else {"response": ""}
        return await send_json(call, {**head, **rest, "done": True, "done_reason": reason})

    def _compute(
        self, read: Callable[[RequestFields], Any], answer: Callable[[Any, OpenModel], Any]
    ) -> Callable[[Call], Awaitable[int]]:
        """A handler that answers beside the engine."""

        async def handle(call: Call) -> int:
            asked = read(parse_json(await read_body(call)))
            opened = self._queue.use()
            return await send_json(call, await asyncio.to_thread(answer, asked, opened))

        return handle

    def _embed(
        self,
        read: Callable[[RequestFields, Carried, Defaults], VectorAsk],
        write: Callable[[str, VectorAsk, Vectors], dict[str, Any]],
    ) -> Callable[[Call], Awaitable[int]]:
        """A handler that answers with vectors."""

        async def handle(call: Call) -> int:
            body = parse_json(await read_body(call))
            name, carried = self._split(body, call.carried)
            ask, queue = read(body, carried, self._defaults), self._queue
            queue.use()
            if not isinstance(queue, VectorQueue):
                raise RequestRefused(400, "this model makes no vectors; serve an embedding model")
            gone = threading.Event()
            watch = asyncio.create_task(wait_gone(call.receive, gone.set))
            try:
                made = await queue.embed(ask, gone.is_set)
            finally:
                gone.set()
                watch.cancel()
            return await send_json(call, write(self._name(name), ask, made))

        return handle

    def _split(self, body: RequestFields, carried: Carried) -> tuple[str, Carried]:
        """The model's name, and the limits with the one in it."""
        name, within = split_model(body.text("model", most=1000))
        if within is not None and carried.within is None:
            carried = replace(carried, within=within)
        return name, carried

    async def _predict(self, call: Call) -> int:
        body = parse_json(await read_body(call))
        ask = openai.read_chat(body, call.carried, self._defaults)
        return await send_json(call, await self._queue.predict(ask))

    async def _count_tokens(self, call: Call) -> int:
        body = parse_json(await read_body(call))
        ask = anthropic.read_request(body, call.carried, self._defaults)
        predicted = await self._queue.predict(ask)
        return await send_json(call, {"input_tokens": predicted["prompt_tokens"]})

    # ---- facts --------------------------------------------------------------------------------

    def _get(self, facts: Callable[[], Any]) -> Callable[[Call], Awaitable[int]]:
        async def handle(call: Call) -> int:
            return await send_json(call, facts())

        return handle

    def _describe(self) -> dict[str, Any]:
        bodies: dict[str, Callable[[RequestFields, Carried, Defaults], object]] = {}
        bodies |= {path: read for path, (read, _) in VECTORS.items()}
        bodies |= {path: drop_limits(read) for path, (read, _) in COMPUTED.items()}
        known = {*ANSWERS, *bodies}
        return describe_server(
            ANSWERS, bodies, [key for key in self._routes if key[1] not in known]
        )

    def _slots(self) -> list[dict[str, Any]]:
        return native.describe_slots(self._queue.use(), self._queue.counts())

    def _props(self) -> dict[str, Any]:
        return native.describe_props(self._queue.use(), self._defaults.config, self._slots())

    def _tokenizer(self) -> dict[str, Any]:
        return native.describe_tokenizer(self._queue.use())

    def _name(self, asked: str = "") -> str:
        """The model's name, as Ollama's clients asked for it where they did."""
        opened = self._queue.opened
        name = opened.name if opened else "loading"
        return asked if asked in (name, f"{name}:latest") else name

    def _names(self) -> list[str]:
        name = self._queue.use().name
        return [name, *(f"{name}@{time}" for time in LISTED)]

    def _models(self) -> dict[str, Any]:
        data = [self._model_card(name) for name in self._names()]
        return {"object": "list", "data": data, "models": data}

    def _model_card(self, name: str) -> dict[str, Any]:
        opened = self._queue.use()
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "boardfit",
            "context_length": opened.engine.n_ctx,
        }

    async def _model(self, call: Call) -> int:
        name = call.path.removeprefix("/v1/models/").rstrip("/")
        if split_model(name)[0].removesuffix(":latest") != self._queue.use().name:
            raise RequestRefused(404, "there is no such model; GET /v1/models lists them")
        return await send_json(call, self._model_card(name))

    def _tags(self) -> dict[str, Any]:
        card = self._ollama_card()
        names = [f"{name}:latest" for name in self._names()]
        return {"models": [{**card, "name": name, "model": name} for name in names]}

    def _ollama_card(self) -> dict[str, Any]:
        opened = self._queue.use()
        info = opened.engine.describe()
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started))
        digest = opened.bundle.id if opened.bundle else "0" * 64
        return {
            "modified_at": when,
            "size": opened.model.stat().st_size,
            "digest": digest,
            "details": {
                "format": opened.model.path.suffix.lstrip("."),
                "family": self._architecture(),
                "families": [self._architecture()],
                "parameter_size": "",
                "quantization_level": info.quant,
            },
        }

    def _architecture(self) -> str:
        manifest = self._queue.use().manifest or {}
        model = manifest.get("model")
        found = model.get("architecture") if isinstance(model, Mapping) else None
        return found if isinstance(found, str) else "unknown"

    def _loaded(self) -> dict[str, Any]:
        if self._queue.opened is None:
            return {"models": []}
        name = f"{self._name()}:latest"
        rest = {"expires_at": "2318-01-01T00:00:00Z", "size_vram": 0}
        return {"models": [{**self._ollama_card(), "name": name, "model": name, **rest}]}

    async def _show(self, call: Call) -> int:
        body = parse_json(await read_body(call))
        asked = split_model(body.text("model") or body.text("name"))[0].removesuffix(":latest")
        opened = self._queue.use()
        if asked != opened.name:
            raise RequestRefused(404, f"model '{asked[:200]}' not found")
        arch = self._architecture()
        card = self._ollama_card()
        return await send_json(call, {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": card["details"],
            "model_info": {
                "general.architecture": arch,
                f"{arch}.context_length": opened.engine.n_ctx,
            },
            "capabilities": self._capabilities(),
            "modified_at": card["modified_at"],
        })  # fmt: skip

    def _capabilities(self) -> list[str]:
        if isinstance(self._queue, VectorQueue):
            return ["embedding"]
        opened = self._queue.use()
        knows_tools = opened.engine.has_template and opened.tool_format.proof != "generic"
        return ["completion", *(["tools"] if knows_tools else [])]

    def _ready(self) -> dict[str, Any]:
        return {"status": "ready", "model": self._queue.use().name}

    def _status(self) -> dict[str, Any]:
        opened = self._queue.use()
        info = opened.engine.describe()
        return {
            "model": opened.name,
            "engine": {"name": info.name, "version": info.version, "n_threads": info.n_threads,
                       "n_ctx": info.n_ctx, "quant": info.quant, "kv_type": info.kv_type},
            "plan": opened.plan and {
                key: getattr(opened.plan, key) for key in ("device", "prefill_tps", "decode_tps")
            },
            "tools": opened.tool_format.to_dict() if opened.engine.has_template else None,
            "requests": self._queue.counts(),
            "uptime_s": int(time.time()) - self._started,
        }  # fmt: skip

    def _plan(self) -> dict[str, Any]:
        plan = self._queue.use().plan
        if plan is None:
            raise RequestRefused(404, "this model is a plain file, without a plan")
        return plan.to_dict()

    async def _metrics(self, call: Call) -> int:
        counts = {f"requests_{k}": float(v) for k, v in self._queue.counts().items()}
        text = self._queue.counters.to_text({**counts, "ready": float(self._queue.is_ready)})
        return await send_whole(call, 200, text.encode(), CONTENT_TYPE)

    async def _asset(self, call: Call) -> int:
        """A file of the chat page. The folder holds nothing else."""
        name = call.path.removeprefix("/page/").strip("/") or "index.html"
        kind = _PAGE_TYPES.get(name.rpartition(".")[2])
        try:
            if kind is None or "/" in name:
                raise FileNotFoundError
            data = (PAGE / name).read_bytes()
        except OSError:
            raise RequestRefused(404, "there is no such path") from None
        return await send_whole(call, 200, data, kind, {"Content-Security-Policy": PAGE_POLICY})

    async def _preflight(self, call: Call) -> int:
        return await send_whole(call, 204, b"", JSON)

    async def _refuse(self, call: Call, refused: RequestRefused) -> int:
        write = next((w for head, w in _ERRORS.items() if call.path.startswith(head)), openai_error)
        # A body that was left unread would be taken for the next request.
        is_unread = refused.status in (408, 413, 415)
        close = {"Connection": "close"} if is_unread else {}
        try:
            if is_unread:
                await drain(call.receive)
            headers = {**refused.headers, **close}
            await send_whole(call, refused.status, dump(write(refused)), JSON, headers)
        except (asyncio.TimeoutError, ConnectionError):
            return 499
        return refused.status


async def wait_gone(receive: Receive, give_up: Callable[[], None]) -> None:
    """Call `give_up` as soon as the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    give_up()


def _only_loads(body: RequestFields) -> bool:
    return not body.get("messages") and not body.get("prompt")


async def read_body(call: Call) -> bytes:
    """The body of a request. Raises RequestRefused for one too long, too slow, or compressed."""
    if "content-encoding" in call.headers:
        raise RequestRefused(415, "compressed bodies are not read")
    too_long = RequestRefused(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    stated = call.headers.get("content-length", "0")
    if not stated.isdigit() or int(stated) > MAX_BODY_BYTES:
        raise too_long
    parts, n_bytes, end_s = [], 0, time.monotonic() + RECEIPT_S
    while True:
        try:
            message = await asyncio.wait_for(call.receive(), max(0.0, end_s - time.monotonic()))
        except asyncio.TimeoutError:
            raise RequestRefused(408, f"the body did not come within {RECEIPT_S:g} s") from None
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        n_bytes += len(parts[-1])
        if n_bytes > MAX_BODY_BYTES:
            raise too_long
        if not message.get("more_body", False):
            return b"".join(parts)


async def drain(receive: Receive) -> None:
    """Read what is left of a body, for a while. A connection that is closed on unread bytes is
    reset, and its client never sees the answer.
    """

    async def read_on() -> None:
        n_bytes = 0
        while n_bytes < 8 * MAX_BODY_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return
            n_bytes += len(message.get("body", b""))

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read_on(), DRAIN_S)


async def whole_answer(call: Call, job: Job, writer: Writer) -> int:
    """Wait for the end, then send everything."""
    parts: list[str] = []
    while True:
        try:
            item = await job.next()
        except Exception as error:
            raise refusal_of(error) from error
        if isinstance(item, TokenEvent):
            parts.append(item.text)
            writer.last = item
        elif isinstance(item, Ended):
            body = writer.whole("".join(parts), item)
            return await send_json(call, body, {"Server-Timing": server_timing(item)})


async def stream_answer(call: Call, job: Job, writer: Writer) -> int:
    """Send pieces as they come. Until the request is admitted, an error is still a status."""
    try:
        await job.next()
    except Exception as error:
        raise refusal_of(error) from error
    await call.send(start_message(200, writer.stream_type, {"X-Accel-Buffering": "no"}))
    await send_parts(call, writer.begin())
    while True:
        try:
            item = await job.next(PING_S)
        except Exception as error:
            LOG.error("a stream failed: %s", type(error).__name__)
            await send_parts(call, writer.fail(refusal_of(error)))
            break
        if isinstance(item, Ended):
            await send_parts(call, writer.end(item))
            break
        if isinstance(item, TokenEvent):
            writer.last = item
            await send_parts(call, writer.piece(item))
        elif not isinstance(item, Begun):
            await send_parts(call, writer.ping())
    await call.send({"type": "http.response.body", "body": b"", "more_body": False})
    return 200


async def send_parts(call: Call, parts: Iterable[bytes]) -> None:
    if data := b"".join(parts):
        await call.send({"type": "http.response.body", "body": data, "more_body": True})


async def send_json(call: Call, value: Any, headers: Mapping[str, str] = {}) -> int:
    return await send_whole(call, 200, dump(value), JSON, headers)


async def send_whole(
    call: Call, status: int, body: bytes, kind: str, headers: Mapping[str, str] = {}
) -> int:
    """Send a whole answer; its head alone for HEAD."""
    start = start_message(status, kind, {**headers, "Content-Length": str(len(body))})
    await call.send(start)
    rest = b"" if call.method == "HEAD" else body
    await call.send({"type": "http.response.body", "body": rest, "more_body": False})
    return status


def start_message(status: int, kind: str, headers: Mapping[str, str]) -> dict[str, Any]:
    pairs = {"Content-Type": kind, **headers}
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in pairs.items()],
    }


def server_timing(ended: Ended) -> str:
    """Where the time went, for a browser's tools: milliseconds."""
    answer = ended.answer
    first_s = answer.ttft_s or 0.0
    spans = {"queue": ended.queue_s, "prefill": max(0.0, first_s - ended.queue_s),
             "decode": answer.total_s - first_s}  # fmt: skip
    return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in spans.items())
