// What the page asks of the board. The token is kept for this tab alone.

const KEY = "boardfit-token";
let token = null;

// `#k=TOKEN` in the address: a fragment is never sent, and it leaves the address at once.
if (location.hash.startsWith("#k=")) {
  setToken(decodeURIComponent(location.hash.slice(3)));
  history.replaceState(null, "", location.pathname);
}

export function setToken(value) {
  token = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* a browser may forbid it */ }
}

function headers() {
  try { token ??= sessionStorage.getItem(KEY); } catch { /* likewise */ }
  return {"Content-Type": "application/json", ...(token ? {Authorization: `Bearer ${token}`} : {})};
}

/** An answer that is no 200, in the server's own words. `status` 0: the board cannot be reached. */
export class Refused extends Error {
  constructor(status, message, edge) {
    super(message);
    this.status = status;
    this.edge = edge ?? {};
  }
}

async function request(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST", headers: headers(), signal, cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The board cannot be reached.");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  throw new Refused(response.status, found.error?.message ?? `Status ${response.status}`, found.edge);
}

export async function get(path) { return (await request(path)).json(); }
export async function post(path, body, signal) { return (await request(path, body, signal)).json(); }

/** Every chunk of a streamed chat completion. */
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {...body, stream: true}, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) throw new Refused(0, "The connection broke off.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Refused(500, chunk.error.message, chunk.edge);
      yield chunk;
    }
  }
}
