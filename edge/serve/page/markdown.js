// Text of a model as DOM nodes, while it streams. No HTML of the text is ever read, and nothing is
// fetched: pictures become their address as text, and links lead only to the web and to mail.

import {CODE_INLINE, HREF, IMAGE, SRC, default_renderer, parser, parser_end, parser_write} from "./streaming-markdown.js";

const SAFE = /^(https?:|mailto:)/i;

/** A writer of Markdown into `root`: `write(text)`, then `end()`. */
export function markdown(root) {
  const renderer = default_renderer(root);
  const {add_token, set_attr} = renderer;
  renderer.add_token = (data, token) => add_token(data, token === IMAGE ? CODE_INLINE : token);
  renderer.set_attr = (data, kind, value) => {
    if (kind === SRC) return void data.nodes[data.index].append(value);
    if (kind !== HREF) return set_attr(data, kind, value);
    if (!SAFE.test(value)) return;
    set_attr(data, kind, value);
    data.nodes[data.index].setAttribute("rel", "noopener noreferrer");
    data.nodes[data.index].setAttribute("target", "_blank");
  };
  const state = parser(renderer);
  return {write: (text) => parser_write(state, text), end: () => parser_end(state)};
}
