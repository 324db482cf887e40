// Conversations in this browser: IndexedDB, or this page's memory where a browser has none.

const NAME = "boardfit", TABLE = "conversations";
const memory = new Map();

function open() {
  return new Promise((resolve) => {
    let request;
    try { request = indexedDB.open(NAME, 1); } catch { return resolve(null); }
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, {keyPath: "id"});
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => resolve(null);
  });
}

const opened = open();

async function run(mode, act) {
  const base = await opened;
  if (base === null) return undefined;
  return new Promise((resolve, reject) => {
    const request = act(base.transaction(TABLE, mode).objectStore(TABLE));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** A name for something new. crypto.randomUUID is missing on plain http. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
}

/** All conversations, the latest first. */
export async function list() {
  const found = (await run("readonly", (table) => table.getAll())) ?? [...memory.values()];
  return found.sort((a, b) => b.changed - a.changed);
}

export async function save(conversation) {
  memory.set(conversation.id, conversation);
  await run("readwrite", (table) => table.put(conversation));
}

export async function remove(id) {
  memory.delete(id);
  await run("readwrite", (table) => table.delete(id));
}

export async function clear() {
  memory.clear();
  await run("readwrite", (table) => table.clear());
}
