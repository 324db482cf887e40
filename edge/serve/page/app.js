// The chat page: a conversation with the board that serves it.

import * as api from "./api.js";
import {markdown} from "./markdown.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);
const TIMES = [null, 0.5, 1, 2, 3, 5, 10, 20, 60];
const seconds = (s) => s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`;

let facts = null;         // what the board says of itself
let conversation = fresh();
let running = null;       // an AbortController while an answer comes
const kept = [];          // whether the last answers with a limit were in time

function fresh() {
  return {id: store.newId(), changed: Date.now(), system: $("system").value, messages: []};
}

function make(tag, text = "", fields = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  return Object.assign(element, fields);
}

function button(text, act) {
  return make("button", text, {type: "button", onclick: act});
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
}

// ---- drawing ------------------------------------------------------------------------------------

function draw() {
  $("log").replaceChildren(...conversation.messages.map(drawMessage));
  $("log").scrollTop = $("log").scrollHeight;
}

function drawMessage(message, i) {
  const isOwn = message.role === "user";
  const article = make("article", "", {className: message.role});
  article.append(make("h2", isOwn ? "You" : "Answer"));
  if (isOwn) article.append(make("div", message.content));
  else drawAnswer(article, message);
  const actions = make("div", "", {className: "actions"});
  actions.append(button("Copy", () => copy(message.content)));
  if (isOwn) actions.append(button("Edit", () => edit(i)));
  else if (i === conversation.messages.length - 1) actions.append(button("Again", again));
  article.append(actions);
  return article;
}

function drawAnswer(article, message) {
  if (message.thought) {
    const details = make("details");
    details.append(make("summary", "Thoughts"), make("div", message.thought));
    article.append(details);
  }
  const body = make("div");
  const writer = markdown(body);
  writer.write(message.content);
  writer.end();
  article.append(body);
  if (message.isCut) article.append(make("p", "This answer was cut off.", {className: "facts cut"}));
  if (message.facts) article.append(make("p", message.facts, {className: "facts"}));
}

async function drawList() {
  const found = await store.list();
  $("list").replaceChildren(...found.map((each) => {
    const item = make("li");
    const title = each.messages[0]?.content.slice(0, 60) || "Empty conversation";
    const opener = button(title, () => show(each));
    opener.className = "open";
    opener.setAttribute("aria-current", each.id === conversation.id);
    const remover = button("Delete", async () => {
      await store.remove(each.id);
      if (each.id === conversation.id) show(fresh());
      drawList();
    });
    remover.setAttribute("aria-label", `Delete ${title}`);
    item.append(opener, remover);
    return item;
  }));
}

function show(other) {
  stop();
  conversation = other;
  $("system").value = conversation.system ?? "";
  draw();
  drawList();
}

// ---- asking -------------------------------------------------------------------------------------

function limit() { return TIMES[$("within").value]; }

function body(messages) {
  const system = $("system").value.trim();
  const head = system ? [{role: "system", content: system}] : [];
  const plain = messages.map(({role, content}) => ({role, content}));
  const within = limit();
  return {
    messages: [...head, ...plain], model: facts?.model ?? "board", class: "interactive",
    ...(within ? {within: `${within}s`, on_miss: $("best").checked ? "best" : "refuse"} : {}),
  };
}

async function ask(text) {
  if (running) return;
  conversation.system = $("system").value;
  const question = {role: "user", content: text};
  const answer = {role: "assistant", content: "", thought: "", isCut: true};
  const asked = [...conversation.messages, question];
  conversation.messages = [...asked, answer];
  draw();
  const article = $("log").lastElementChild;
  const view = make("div");
  article.replaceChildren(make("h2", "Answer"), view);
  const writer = markdown(view);
  let waiting = "", frame = 0;
  const flush = () => {      // one change of the page per frame, however fast tokens come
    frame = 0;
    const log = $("log");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    writer.write(waiting);
    waiting = "";
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  };
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  say("Writing");
  let saved = Date.now(), ended = null, error = null;
  await store.save(conversation);
  try {
    for await (const chunk of api.chat(body(asked), running.signal)) {
      const delta = chunk.choices[0]?.delta ?? {};
      answer.thought += delta.reasoning_content ?? "";
      answer.content += delta.content ?? "";
      waiting += delta.content ?? "";
      frame ||= requestAnimationFrame(flush);
      if (chunk.edge) ended = chunk;
      if (Date.now() - saved > 1000) {  // a page that is closed keeps what it has
        saved = Date.now();
        store.save(conversation);
      }
    }
  } catch (caught) {
    error = caught;
  }
  cancelAnimationFrame(frame);
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
  answer.isCut = ended === null && answer.content !== "";
  if (ended) measure(ended, answer);
  if (answer.content === "" && !answer.thought) {
    conversation.messages = conversation.messages.slice(0, -2);
    if (error) $("question").value ||= text;
  }
  conversation.changed = Date.now();
  await store.save(conversation);
  draw();
  drawList();
  conclude(error, answer);
}

function conclude(error, answer) {
  if (error && error.name !== "AbortError") {
    const nearest = error.edge?.nearest_s;
    say(nearest ? `${error.message}. Possible within ${seconds(nearest)}.` : error.message, true);
    if (error.status === 401) $("key").showModal();
  } else if (error) {
    say("Stopped");
  } else {
    const words = answer.content.split(/\s+/).filter(Boolean).length;
    say(words ? `Answer complete, ${words} word${words === 1 ? "" : "s"}` : "The model gave no answer");
  }
}

function measure({edge, timings, usage}, answer) {
  const used = timings.cache_n + timings.prompt_n + timings.predicted_n;
  $("g-first").textContent = edge.first_s === null ? "–" : seconds(edge.first_s);
  $("g-speed").textContent = timings.predicted_per_second?.toFixed(1) ?? "–";
  $("g-reused").textContent = `${timings.cache_n} of ${timings.cache_n + timings.prompt_n}`;
  $("g-context").textContent = facts ? `${used} of ${facts.engine.n_ctx}` : used;
  if (edge.within_s) {
    kept.push(edge.met);
    const last = kept.slice(-50);
    $("g-met").textContent = `${last.filter(Boolean).length} of ${last.length}`;
  }
  const words = [`${timings.predicted_n} tokens in ${seconds(edge.total_s)}`];
  if (edge.within_s) words.push(edge.met ? "in time" : "late");
  if (edge.shortened) words.push("shortened");
  const lost = edge.prefix_lost;
  if (lost?.cost_s) words.push(`prefix lost to a changed ${lost.text_class}: ${seconds(lost.cost_s)}`);
  answer.facts = [...words, ...(edge.adjustments ?? []), ...(edge.notes ?? [])].join(" · ");
}

function stop() { running?.abort(); }

function edit(i) {
  if (running) return;
  const message = conversation.messages[i];
  // What was said so far stays: the other branch becomes a conversation of its own.
  conversation = {...fresh(), messages: conversation.messages.slice(0, i)};
  draw();
  $("question").value = message.content;
  $("question").focus();
}

function again() {
  const i = conversation.messages.findLastIndex((message) => message.role === "user");
  if (running || i < 0) return;
  const {content} = conversation.messages[i];
  conversation.messages = conversation.messages.slice(0, i);
  ask(content);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {                   // plain http has no clipboard: by selection
    const area = make("textarea", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied");
}

// ---- saved conversations ------------------------------------------------------------------------

function save() {
  const saved = {
    kind: "boardfit-session", schema: 1, system: conversation.system || null,
    messages: conversation.messages.map(({role, content}) => ({role, content})),
  };
  const link = make("a", "", {
    href: URL.createObjectURL(new Blob([JSON.stringify(saved, null, 2)], {type: "application/json"})),
    download: "conversation.json",
  });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function load(file) {
  try {
    const found = JSON.parse(await file.text());
    const isSound = found.kind === "boardfit-session" && Array.isArray(found.messages) && found.messages.every(
      (m) => ["user", "assistant"].includes(m.role) && typeof m.content === "string");
    if (!isSound) throw new Error();
    show({...fresh(), system: found.system ?? "", messages: found.messages});
    await store.save(conversation);
    drawList();
  } catch {
    say("This file is no saved conversation.", true);
  }
}

// ---- predictions --------------------------------------------------------------------------------

let timer = 0;
function predictSoon() {
  clearTimeout(timer);
  timer = setTimeout(predict, 400);
}

async function predict() {
  const text = $("question").value.trim();
  $("within-text").textContent = limit() ? seconds(limit()) : "no limit";
  if (!text || running) return void ($("prediction").textContent = "");
  try {
    const found = await api.post(
      "edge/v1/predict", body([...conversation.messages, {role: "user", content: text}]));
    const first = found.queue_s + found.first_token_s.mid;
    const usual = found.queue_s + found.usual_answer_s;
    $("prediction").textContent = `First word in about ${seconds(first)}; a usual answer takes ${seconds(usual)}.`;
  } catch {
    $("prediction").textContent = "";
  }
}

// ---- beginning ----------------------------------------------------------------------------------

async function meet() {
  try {
    facts = await api.get("edge/v1/status");
  } catch (error) {
    if (error.status === 401) return void $("key").showModal();
    say(error.status === 503 ? "The model is loading" : error.message, error.status !== 503);
    return void setTimeout(meet, 1000);
  }
  $("model").textContent = document.title = facts.model;
  say("Ready");
  const plan = facts.plan;
  if (plan?.decode_tps) {
    $("plan").textContent = `Planned for ${plan.device}: ${plan.decode_tps.toFixed(1)} tokens/s, ` +
      `prompts at ${plan.prefill_tps.toFixed(0)} tokens/s.`;
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || running) return;
  $("question").value = "";
  $("prediction").textContent = "";
  ask(text);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
$("question").addEventListener("input", predictSoon);
$("within").addEventListener("input", predict);
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => { show(fresh()); $("question").focus(); });
$("menu").addEventListener("click", () => {
  $("side").hidden = !$("side").hidden;
  $("menu").setAttribute("aria-expanded", !$("side").hidden);
});
$("export").addEventListener("click", save);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => $("file").files[0] && load($("file").files[0]));
$("delete-all").addEventListener("click", async () => {
  if (!confirm("Delete every conversation in this browser?")) return;
  await store.clear();
  show(fresh());
});
$("key").addEventListener("close", () => { api.setToken($("token").value.trim()); meet(); });

const [latest] = await store.list();
if (latest) show(latest);
drawList();
meet();
