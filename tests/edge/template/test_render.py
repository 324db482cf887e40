"""Chat templates: rendered as transformers renders them; hostile ones refused, fast and with words.

Proofs of concept are those published for CVE-2024-34359 (llama-cpp-python), CVE-2026-5760 (SGLang)
and Jinja's own CVE-2024-56201, CVE-2024-56326, CVE-2025-27516.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from typing import Any

import pytest

from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError
from boardfit.edge.process import forked
from boardfit.edge.template import render as renderer
from boardfit.edge.template.lint import check
from boardfit.edge.template.render import kept_worker, render

USER = [{"role": "user", "content": "Hello"}]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def run(template: str, messages: Any = USER, **extra: Any) -> str:
    return render(template, messages, bos_token="<s>", eos_token="</s>", **extra)


# ---- what must work ---------------------------------------------------------------------------


def test_chatml() -> None:
    expected = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert run(CHATML) == expected
    assert run(CHATML, add_generation_prompt=False) == expected.removesuffix(
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}{{ tools }}", "<s></s>None"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
         "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}", "013"),
        ("{% generation %}x{% endgeneration %}y", "xy"),
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),
        ("{{ [1, 2]|tojson(indent=2) }}", "[\n  1,\n  2\n]"),
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{% set ns = namespace(n=0, l=[]) %}{% for m in [1, 2] %}{% set ns.n = ns.n + m %}"
         "{% set ns.l = ns.l + [m] %}{% endfor %}{{ ns.n }}{{ ns.l }}", "3[1, 2]"),
        ("{% for m in [1, 2, 3] %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{% endfor %}",
         "0False31False32True3"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% macro m(x, y='z') %}[{{ x }}{{ y }}]{% endmacro %}{{ m(1) }}{{ m(2, y=3) }}",
         "[1z][23]"),
        ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}in{% endcall %}", "<in>"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}", "A1"),
        ("{% filter upper %}ab{% endfilter %}", "AB"),
        ("{% for n in [[1, []], [2, []]] recursive %}{{ n[0] }}{{ loop(n[1]) }}{% endfor %}",
         "12"),
        ("{{ '%s-%05.1f' % ('a', 2) }}{{ '{:>4}|{}'.format(1, 'x') }}", "a-002.0   1|x"),
        ("{{ 'a,b'.split(',')|join('-') }}{{ 'abc'[::-1] }}{{ 'aXa'|replace('a', 'b') }}",
         "a-bcbabXb"),
        ("{{ messages|map(attribute='role')|join(',') }}", "user"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ undefined_thing }}|{{ undefined_thing is defined }}", "|False"),
        ("{{ ('a'|safe) + '<b>' }}", "a&lt;b&gt;"),  # as in transformers: Markup escapes
    ],
)  # fmt: skip
def test_behaves_like_jinja(template: str, expected: str) -> None:
    assert run(template) == expected


def test_time_is_the_given_one() -> None:
    now = datetime.datetime(2026, 11, 22)
    assert run("{{ strftime_now('%d %b %Y') }}", now=now) == "22 Nov 2026"


def test_long_conversation_passes() -> None:
    messages = [{"role": "user", "content": "word " * 200}] * 1000
    text = run("{% set ns = namespace(t='') %}{% for m in messages %}"
               "{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}", messages)  # fmt: skip
    assert len(text) == 1_000_000


def test_template_cannot_change_the_callers_messages() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(UnsafeInputError, match="in place"):
        run("{{ messages.append(1) }}", messages)
    assert messages == [{"role": "user", "content": "x"}]


# ---- errors that a user meets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "empty"),
        ("{% for %}", "line 1"),
        ("a\n{% endif %}", "line 2"),
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
        ("{{ none + 'a' }}", "TypeError"),
        ("{{ missing.x }}", "'missing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for x in none %}{% endfor %}", "TypeError"),
        ("{{ 'a'|no_such_filter }}", "no_such_filter"),
        ("{{ lipsum() }}", "undefined"),
    ],
)
def test_broken_template_is_an_input_error(template: str, words: str) -> None:
    with pytest.raises(InputError, match="chat template") as caught:
        run(template)
    assert words in str(caught.value)


def test_in_place_change_says_how_else() -> None:
    with pytest.raises(UnsafeInputError) as caught:
        run("{% set d = {} %}{{ d.update({'a': 1}) }}")
    assert ".update" in str(caught.value)
    assert "namespace" in str(caught.value.next_step)


def test_only_plain_data_goes_in() -> None:
    with pytest.raises(InputError, match="plain data"):
        run("x", tools=[object()])


# ---- escapes ----------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
    "{{ x()._module.__builtins__['__import__']('os').popen('id').read() }}{% endif %}{% endfor %}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.func }}{{ strftime_now.func('x') }}",
    "{{ ''['__class__'].mro() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ['']|map(attribute='__class__')|list|first|attr('mro') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ['{0.__class__}'.format]|map('attr', '__self__')|join }}",
    "{{ ''|attr('format')|attr('__self__') }}{{ ('{0.__class__}'|attr('format'))('') }}",
    "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "{{ (messages|map('upper')).gi_code }}",
    "{{ dict.mro() }}",
    "{{ dict.fromkeys }}{{ dict.fromkeys('ab') }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ 'a'.encode().hex() }}",
    "{{ 'a'.translate({97: 'b'}) }}",
    "{{ {'a': 1}.items().mapping }}{{ {'a': 1}.items().mapping.copy() }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% from '/etc/passwd' import x %}",
    "{% extends '/etc/passwd' %}",
    "{% autoescape true %}{{ x }}{% endautoescape %}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__class__ }}{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ m|attr('_environment') }}{% macro m() %}{% endmacro %}{{ m._environment.filters }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    try:
        text = run(template)
    except EdgeError:
        return
    # Reading a forbidden attribute may give an undefined value, which writes nothing.
    assert text == "", f"the sandbox let something through: {text!r}"


# ---- exhaustion -------------------------------------------------------------------------------

BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 2 ** 100000 }}",
    "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set ns = namespace(x={'a': 1}) %}{% for i in range(40) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "{% set ns = namespace(x={'a': 1}) %}{% for i in range(40) %}"
    "{% set ns.x = dict(a=ns.x, b=ns.x.items()) %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set x %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% set ns.x = x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x.replace('a', 'aa').replace('b', 'bb') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x|replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x=namespace()) %}{% for i in range(9999) %}"
    "{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}" + "{{ 'a' * 10**10 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'aaaaaaaaaaaaaaaa' }}{% endfor %}"
    "{% endfor %}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "{% set x %}{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}{% endset %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% macro m(n) %}{% if n %}{% set a = m(n-1) %}{% set b = m(n-1) %}{% endif %}{% endmacro %}"
    "{{ m(50) }}",
    "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%.999999999f' % 1 }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ '{:{w}}'.format_map({'w': 999999999}) }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}{{ 'a'.zfill(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'|indent(10**10) }}",
    "{{ [[1]]|tojson(indent=10**10) }}",
    "{{ [[1]]|tojson(indent='a' * 5000000) }}",
    "{{ [1]|batch(10**10, 0)|list }}",
    "{{ [1]|slice(10**10)|list }}",
    "{{ 1.5|round(10**10, 'ceil') }}",
    "{{ ('1' * 8000000).split('1') }}",
    "{{ ('1 ' * 4000000).split() }}",
    "{{ ('1' * 8000000)|list }}",
    "{{ ('1' * 8000000)|sort }}",
    "{{ ('1' * 8000000)|map('upper')|list }}",
    "{{ ('1' * 8000000)|map('upper')|join }}",
    "{{ range(99999)|map('string')|map('center', 1000)|join }}",
    "{{ [range(9)|list]|map('sum', start=[1] * 300000)|list }}",
    "{% set x = [[1] * 1000] * 5000 %}{{ x|sum(start=[]) }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{{ " + "not " * 30000 + "1 }}",
    "{{ 1" + " + 1" * 30000 + " }}",
    "{{ a" + ".a" * 30000 + " }}",
    "{{ a" + "|upper" * 15000 + " }}",
    "{% if a %}" * 10000 + "{% endif %}" * 10000,
    "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "{% macro a() %}{{ b }}{% endmacro %}" * 3000,
    "x" * (200 * 1024),
    "{% set a0 = 'x' * 8000000 %}" + "".join(f"{{% set a{i} = a0 ~ '' %}}" for i in range(1, 2000)),
]  # fmt: skip


# Operations of C that are long in themselves, or that a lazy filter repeats.
_R = "{% set r = range(100000)|list %}"
_A = "{% set a = 'x' * 8000000 %}{% set b = 'x' * 7999999 ~ 'x' %}"
_C = "{% set c = 'x' * 98 ~ 'y' %}"
_P = str(2**61 - 1)  # Python's hash prime: its multiples share a hash
LONG = [
    _R + "{{ r|select('in', r)|list|length }}",
    _R + "{{ r|reject('in', r)|list|length }}",
    _R + "{{ r|map('string')|select('in', r)|list|length }}",
    _R + "{% set l = [{'a': -1}] * 20000 %}{{ l|selectattr('a', 'in', r)|list|length }}",
    _R + "{% set l = [{'a': -1}] * 20000 %}{{ l|rejectattr('a', 'in', r)|list|length }}",
    _R + "{% set q = range(100000)|list %}{{ ([q] * 9999)|select('eq', r)|list|length }}",
    _R + "{% set q = range(100000)|list %}{% for i in range(99999) %}{% if q == r %}{% endif %}"
    "{% endfor %}",
    _R + "{{ [" + ",".join(["-1 is in r"] * 2400) + "]|length }}",
    _R + "{{ [" + ",".join(["r[1:]|length"] * 9000) + "]|length }}",
    _R + "{% macro m(n) %}{% if -1 in r %}{% endif %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}"
    "{% endmacro %}{{ m(30) }}",
    _R + "{% for i in range(99999) %}{% set x = r.index(99999) %}{% endfor %}",
    _A + "{{ [" + ",".join(["a==b"] * 2400) + "]|length }}",
    _A + "{{ " + "==".join(["a", "b"] * 1200) + " }}",
    _A + "{{ [" + ",".join(["a is lower"] * 2400) + "]|length }}",
    _A + "{{ [" + ",".join(["a|title|length"] * 1500) + "]|length }}",
    _A + _C + "{% for i in range(9999) %}{% if c in a %}{% endif %}{% endfor %}",
    _A + _C + "{% for i in range(9999) %}{% set x = a.find(c) %}{% endfor %}",
    "{{ range(0, 99999 * P, P)|unique|list|length }}".replace("P", _P),
    "{{ dict(range(0, 99999 * P, P)|batch(2))|length }}".replace("P", _P),
    "{% for i in range(9999) %}{% set x = range(99999)|map('string')|max %}{% endfor %}",
    "{% for i in range(99999) %}{% if 'a' in range(99999) %}{% endif %}{% endfor %}",
    "{% set x = ['x' * 7000] * 1000 %}{% for i in range(9999) %}{% set y = x|sort %}{% endfor %}",
]


# What sounds large, and costs little: it is no reason to refuse a template.
HARMLESS = [
    ("{{ 'a'|indent(width='b' * 5000000) }}", "a"),
    ("{{ 1|round(10**10) }}{{ 1|round(-10**10) }}", "11"),
    ("{% set ns = namespace(x=(1,)) %}{% for i in range(40) %}{% set ns.x = (ns.x, ns.x) %}"
     "{% endfor %}{{ ns.x == ns.x }}", "True"),
]  # fmt: skip
#: One operation of C that takes minutes.
ENDLESS = "{{ (3 ** (10 ** 9)) % 7 }}"


@pytest.mark.parametrize("template", LONG, ids=lambda text: f"{len(text)}:{text[-60:]}")
def test_a_long_run_is_ended(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(UnsafeInputError, match="template"):
        run(template, max_seconds=0.2)
    assert time.monotonic() - start < 3  # 0.4 s, and what a busy machine adds


@pytest.mark.parametrize(("template", "expected"), HARMLESS)
def test_what_costs_little_is_rendered(template: str, expected: str) -> None:
    assert run(template) == expected


def test_a_started_program_renders_under_the_same_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where no fork is safe."""
    monkeypatch.setattr(forked, "can_fork", lambda: False)
    monkeypatch.setattr(renderer, "can_fork", lambda: False)
    monkeypatch.setattr(renderer, "_workers", [])
    assert run(CHATML).startswith("<|im_start|>user\nHello")
    (worker,) = renderer._workers
    with pytest.raises(UnsafeInputError, match="in place"):
        run("{{ messages.append(1) }}")
    with pytest.raises(UnsafeInputError, match=r"more than 0\.3 s"):
        run(ENDLESS, max_seconds=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(forked, "MEMORY_BYTES", 1 << 20)  # here: the kernel's limit is far
        with pytest.raises(UnsafeInputError, match="too much memory"):
            run("{% set a = 'x' * 60000000 %}" + ENDLESS)
    assert run("{{ messages|length }}") == "1"
    worker.close()


def test_one_endless_operation_is_ended_by_the_kernel() -> None:
    start = time.monotonic()
    with pytest.raises(UnsafeInputError, match="more than"):
        run(ENDLESS, max_seconds=0.3)
    assert time.monotonic() - start < 3


def test_an_interrupt_ends_a_long_operation_at_once() -> None:
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(ENDLESS)
    assert time.monotonic() - start < 1.3


def test_errors_of_the_child_keep_their_kind_and_next_step() -> None:
    with pytest.raises(UnsafeInputError, match="in place") as caught:
        run("{{ messages.append(1) }}")
    assert "namespace" in (caught.value.next_step or "")
    assert run("{{ messages[0].content }}", [{"role": "user", "content": "\ud800ä"}]) == "\ud800ä"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 3 > 2 == 2 }}", "TrueFalseTrue"),
        ("{{ 'a' in 'abc' }}{{ 'd' not in ['a'] }}{{ missing in ['a'] }}", "TrueTrueFalse"),
        ("{{ missing == 1 }}{{ none == none }}{{ missing is in ['a'] }}", "FalseTrueFalse"),
        ("{{ 'a' in {'a': 1} }}{{ 2 in range(3) }}{{ messages == messages }}", "TrueTrueTrue"),
        ("{{ none|map('upper')|list }}{{ missing|select('eq', 1)|list }}", "[][]"),
        ("{{ [3, 1, 2]|sort }}{{ {'b': 1, 'a': 2}|list }}{{ range(3)|max }}",
         "[1, 2, 3]['b', 'a']2"),
        ("{{ dict([['a', 1]]) }}{{ dict(a=1) }}{{ dict({'a': 1}, b=2)['b'] }}",
         "{'a': 1}{'a': 1}2"),
        ("{{ [1, 1, 2]|unique|list }}{{ [1, 2, 3]|batch(2)|list }}{{ 'cab'|list|sort|join }}",
         "[1, 2][[1, 2], [3]]abc"),
    ],
)  # fmt: skip
def test_operations_behave_like_jinja(template: str, expected: str) -> None:
    assert run(template) == expected


def test_a_long_conversation_may_compare_and_search_every_turn() -> None:
    messages = [{"role": "user", "content": "word " * 400}] * 3000
    text = run("{% for m in messages %}{% if m.role == 'user' and '</think>' not in m.content %}"
               "{% if loop.index0 == messages|length - 1 %}{{ m.content|trim|length }}{% endif %}"
               "{% endif %}{% endfor %}", messages)  # fmt: skip
    assert text == "1999"


@pytest.mark.parametrize("template", BOMBS, ids=lambda text: f"{len(text)}:{text[:60]}")
def test_bomb_is_stopped(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(EdgeError, match="template"):
        run(template, max_seconds=0.5)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("factor", [1, 10])
def test_memory_is_bounded_in_one_child_and_in_a_kept_one(factor: int) -> None:
    """Beyond what the child began with; a long conversation may take more."""
    n_bytes = 30 * factor << 20
    wanted = f"{{% set a = 'x' * {n_bytes} %}}{{{{ a|length }}}}"
    with kept_worker() if factor > 1 else contextlib.nullcontext():
        if factor == 1:
            assert run(wanted) == str(n_bytes)
            return
        for _ in range(2):
            with pytest.raises(UnsafeInputError, match="too much memory"):
                run(wanted)
            assert run(CHATML).startswith("<|im_start|>user")
        long = [{"role": "user", "content": "x" * (n_bytes // 12)}]
        assert run(wanted, long) == str(n_bytes)


# ---- notes ------------------------------------------------------------------------------------


def test_chatml_needs_no_notes() -> None:
    assert [n for n in check(CHATML) if "variables" not in n] == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("fixed text", "never reads the messages"),
        (CHATML + "{{ strftime_now('%Y') }}", "depends on the date"),
        (CHATML + "{{ secret_switch }}", "secret_switch"),
        (CHATML + "{# see #} https://evil.example/x", "https://evil.example/x"),
        (CHATML + "\u200b", "U+200B"),
        (CHATML.replace("add_generation_prompt", "true"), "ignores add_generation_prompt"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
         + CHATML, "a system message fails"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
         "{{ add_generation_prompt }}", "drops the system message"),
        ("{{ messages|length }}{{ add_generation_prompt }}", "user's words are missing"),
    ],
)  # fmt: skip
def test_notes(template: str, words: str) -> None:
    assert any(words in note for note in check(template)), check(template)
