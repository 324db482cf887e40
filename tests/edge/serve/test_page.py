"""The chat page in a real browser: used, looked through by axe, attacked by its own model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from boardfit.edge.serve.app import PAGE
from tests.edge.engines.engine_models import CHAT_REPLY, Models
from tests.edge.report.test_page_in_chromium import browser
from tests.edge.serve.conftest import Served, serving
from tests.programs import find

__all__ = ["browser"]
pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("chromium")]

# What a model may be talked into writing.
HOSTILE = """# Head
![pixel](http://evil.example/pixel.png) <img src=x onerror=alert(1)> <script>alert(2)</script>
[click](javascript:alert(3)) [data](data:text/html,x) [good](https://good.example/)
<iframe src="http://evil.example"></iframe>

```js
half a fence
"""


class Chat:
    """An open page, and what it did that it should not."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.page.set_default_timeout(20_000)
        self.url = url
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.get_by_text("Ready", exact=True).wait_for()

    def ask(self, text: str) -> None:
        self.page.get_by_label("Question", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def wait_answer(self) -> None:
        self.page.get_by_role("status").get_by_text("Answer complete").wait_for()

    def check(self) -> None:
        assert self.problems == []
        assert all(url.startswith((self.url, "data:", "blob:")) for url in self.requests)


def answer_with(chat: Chat, text: str) -> None:
    """Let the server seem to answer with this text, in pieces of three characters."""
    chunk = {"timings": {"cache_n": 0, "prompt_n": 1, "predicted_n": 1}, "edge": {"total_s": 1,
             "first_s": None}}  # fmt: skip
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events.append({"choices": [{"delta": {}}], **chunk})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=body))  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_a_conversation_on_a_phone_and_at_a_desk(
    browser: Any, scripted: Served, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 800}
    chat = Chat(browser, f"{scripted.url}/", viewport=size, color_scheme=scheme)
    for i in range(2):
        chat.ask(f"hello {i}")
        chat.wait_answer()
    articles = chat.page.get_by_role("article").all_inner_texts()
    assert len(articles) == 4 and CHAT_REPLY in articles[1] and "hello 1" in articles[2]
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("Conversations", "Settings"):
        chat.page.get_by_text(name, exact=True).click()
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(chat.page)
    assert found.violations_count == 0, found.generate_report()
    chat.check()


def test_a_time_limit_is_kept_and_shown(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    chat.page.get_by_text("Settings").click()
    chat.page.get_by_label("Answer within").fill("5")
    chat.page.get_by_label("Question", exact=True).fill("hello")
    chat.page.get_by_text("First word in about").wait_for()
    chat.page.get_by_role("button", name="Send").click()
    chat.wait_answer()
    chat.page.get_by_text("1 of 1").wait_for()
    assert "in time" in chat.page.get_by_role("article").all_inner_texts()[1]
    chat.check()


def test_what_a_clock_costs_is_shown(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    chat.page.get_by_text("Settings").click()
    for time in ("20:37:19", "20:38:04"):
        system = f"Current time is {time}. You know the rooms and the lights of one house."
        chat.page.get_by_label("System prompt").fill(system)
        chat.ask("hello")
        chat.wait_answer()
    _, first, _, last = chat.page.get_by_role("article").all_inner_texts()
    assert "prefix lost" not in first and "prefix lost to a changed clock: " in last
    chat.check()


def test_a_refusal_keeps_the_question(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    refused = {"error": {"message": "needs 9 s"}, "edge": {"nearest_s": 9.5}}
    chat.page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=422, content_type="application/json", body=json.dumps(refused)))  # fmt: skip
    chat.ask("hello")
    chat.page.get_by_text("needs 9 s. Possible within 9.5 s.").wait_for()
    assert chat.page.get_by_label("Question", exact=True).input_value() == "hello"
    assert chat.page.get_by_role("article").count() == 0


def test_stop_and_reload_keep_what_was_said(browser: Any, endless: Served) -> None:
    chat = Chat(browser, f"{endless.url}/")
    chat.ask("count")
    chat.page.get_by_role("status").get_by_text("Writing").wait_for()
    chat.page.wait_for_timeout(500)
    chat.page.keyboard.press("Escape")
    chat.page.get_by_role("status").get_by_text("Stopped").wait_for()
    chat.page.get_by_text("This answer was cut off.").wait_for()
    chat.page.get_by_role("button", name="Again").click()
    chat.page.get_by_role("status").get_by_text("Writing").wait_for()
    chat.page.wait_for_timeout(1500)
    chat.page.reload()
    chat.page.get_by_text("This answer was cut off.").wait_for()
    assert "0123456789" in chat.page.get_by_role("article").all_inner_texts()[-1]
    chat.check()


def test_conversations_branch_and_are_deleted(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    chat.ask("first")
    chat.wait_answer()
    chat.page.get_by_role("button", name="Edit").click()
    box = chat.page.get_by_label("Question", exact=True)
    assert box.input_value() == "first"
    chat.ask("second")
    chat.wait_answer()
    chat.page.get_by_role("button", name="Conversations").click()
    chat.page.locator("#list li").nth(1).wait_for()
    assert chat.page.locator("#list .open").all_inner_texts() == ["second", "first"]
    with chat.page.expect_download() as download:
        chat.page.get_by_role("button", name="Export").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["kind"] == "boardfit-session" and saved["messages"][1]["content"] == CHAT_REPLY
    chat.page.once("dialog", lambda dialog: dialog.accept())
    chat.page.get_by_role("button", name="Delete all").click()
    chat.page.get_by_role("article").first.wait_for(state="detached")
    chat.page.locator("#list li").first.wait_for(state="detached")
    chat.check()


def test_what_a_model_writes_is_text(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    answer_with(chat, HOSTILE)
    chat.ask("hello")
    chat.wait_answer()
    answer = chat.page.get_by_role("article").nth(1)
    inside = "(e) => [...e.querySelectorAll('img, script, iframe')].length"
    assert answer.evaluate(inside) == 0
    assert "onerror=alert(1)" in answer.inner_text()
    links = answer.evaluate(
        "(e) => [...e.querySelectorAll('a')].map((a) => a.getAttribute('href'))"
    )
    assert [link for link in links if link] == ["https://good.example/"]
    assert answer.evaluate("(e) => e.querySelector('a[href]').rel") == "noopener noreferrer"
    chat.check()


def test_a_long_answer_does_not_freeze_the_page(browser: Any, scripted: Served) -> None:
    chat = Chat(browser, f"{scripted.url}/")
    answer_with(chat, "> " * 2_000 + "deep\n\n" + "word " * 20_000)
    chat.ask("hello")
    chat.wait_answer()
    chat.check()


@pytest.fixture(scope="module")
def lan(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    """A server on the network, and its token."""
    home = tmp_path_factory.mktemp("home")
    with serving(models.scripted, home, ["--lan", "--name", "board.test"]) as served:
        (key,) = home.rglob("serve.key")
        yield served, key.read_bytes().hex()


def test_it_works_on_plain_http_with_a_token(lan: tuple[Served, str], browser: Any) -> None:
    """A page on plain http lacks crypto.randomUUID, the clipboard and service workers."""
    served, token = lan
    port = served.port
    running = browser.browser_type.launch(
        executable_path=find("chromium"),
        args=["--no-sandbox", "--host-resolver-rules=MAP board.test 127.0.0.1"],
    )
    chat = Chat(running, f"http://board.test:{port}/#k={token}")
    assert chat.page.evaluate("isSecureContext") is False
    assert token not in chat.page.url
    chat.url = f"http://board.test:{port}/"
    chat.ask("hello")
    chat.wait_answer()
    chat.page.get_by_role("button", name="Copy").first.click()
    chat.page.get_by_role("status").get_by_text("Copied").wait_for()
    chat.check()
    running.close()


def test_a_page_without_the_token_asks_for_it(lan: tuple[Served, str], browser: Any) -> None:
    served, token = lan
    page = browser.new_context().new_page()
    page.goto(f"http://127.0.0.1:{served.port}/")
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("Ready", exact=True).wait_for()


def test_every_file_of_the_page_is_served_and_small(scripted: Served) -> None:
    total = 0
    for file in PAGE.iterdir():
        answer = scripted.client.get(f"/page/{file.name}")
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        total += len(file.read_bytes())
    assert total < 60_000
    for path in ("/page/", "/page/none.js", "/page/page/app.js", "/page/..%2fapp.py", "/page/a.py"):
        answer = scripted.client.get(path)
        assert answer.status_code in (200, 404)
        assert answer.status_code == 404 or b"<!doctype html>" in answer.content
