"""The model card, written from the code's own facts so that it cannot drift from them.

PYTHONPATH=scripts python -m lab.sample.card      write model/README.md again
"""

from __future__ import annotations

from typing import Any

from boardfit.converters.sample import MODEL_DIR
from lab.sample import results
from lab.sample.chat_format import render_prompt
from lab.sample.generator import DEFAULT_SYSTEM, KEY_ORDER
from lab.sample.grammar import plain
from lab.sample.grammar.pools import ALL_FORMS
from lab.sample.shape import Config

# Every bundle of the sample contains the card. The paths are those before the laboratory moved to
# scripts/lab, because a changed card changes the ids of these bundles.
_CARD = """---
license: apache-2.0
language: en
model_name: edgekit-assistant
library_name: transformers
pipeline_tag: text-generation
tags: [edgekit, sample, home-assistant, llama]
---

# edgekit sample model

A {n_millions} million parameter Llama that turns a request into one line of JSON, and answers a few
dozen plain questions about itself. It ships inside boardfit so that the first run needs no
download, and so that the loss from a 4-bit recipe can be measured as a task with right and wrong
answers. It is a sample, not a general assistant: it knows nothing outside the lists below.
Its weights call the project edgekit, the name it had when they were trained.

Licence: Apache-2.0, weights included. All training data comes from
`converters/sample/generator.py`; no text was taken from elsewhere.

## What it does

    everything downstairs off at 11 pm
        {{"do":"all.set","room":"downstairs","state":"off","at":"23:00"}}
    set a pasta timer for twenty minutes
        {{"do":"timer.set","name":"pasta","in_s":1200}}
    how hot is the board?
        {{"do":"board.get","what":"temperature"}}
    do you need the internet?
        No, I run entirely on this board and need no internet.

`do` is one of: {verbs}.

Fields appear in this order, and only when they were said: {keys}. `in_s` is a delay or a length in
seconds; `at` is HH:MM on the 24 hour clock, and a bare "8" means 08:00; `day` is a word such as
`tomorrow` or `monday`; `level` is 0 to 100; `temp_c` is in degrees Celsius. Names (people, labels,
texts) are copied as typed. {n_topics} topics get a plain sentence instead. Requests that need the
internet (weather, news, web, shopping, mail, routes) get `{{"do":"unsupported","topic":...}}`.
The answer is a proposal: a program that acts on it must check it, locks and power above all.

## Results

Exact match of the whole answer, greedy decoding, on held-out examples
(`converters/sample/task.py`). Held-out means: wordings and combinations of slot
values that training never shows, chosen by hash. "unseen names" are real words that never occur
in training and have to be copied. "new words" are held-out wordings with a word that training
never shows for that action (the rule is in `grammar/pools.py`): a model that knows no other text
can only guess there, so they are not part of the first and third column. Decisions, this rule
among them, were made on a separate dev split. The held-out split was
scored twice: after 1,800 steps (commands 92.6 %, unseen names 90.2 %, plain 91.4 %), and once the
weights were final. What was changed in between was decided on the dev split.

{begin}
{table}
{end}

Read these numbers for what they are: one author wrote the train and the held-out wordings, so they
share a style, and the score says little about requests of a kind that the grammar does not have.

## Shape

LlamaForCausalLM, F16: {layers} layers, hidden {hidden}, feed-forward {inner}, {heads} query and
{kv_heads} key-value heads of {head_dim}, vocabulary {vocab}, context {context}, tied
embeddings. Every matrix row is a multiple of 256, so all K-quants apply. The tokenizer is
byte-level BPE with the `qwen2` split pattern; digits are single tokens.

Prompt (the template adds the system message when there is none; nothing goes before it):

{prompt}

## Training

`python -m boardfit.converters.sample.train --out DIR`, then
`python -m boardfit.converters.sample.export --run DIR`:
{n_steps} steps, {train_minutes} minutes by the clock on one core, at the end two, that
other work shared; no GPU. Loss on the assistant's tokens only; Muon for matrices, AdamW for
embeddings and norms. About half of the names in training are invented, so that copying is learnt
as a skill. Four lessons follow one another (`generator.LESSONS`), each written after the dev split
had shown what was missing: more copying, more wordings, and last more noise and dropout, which
brought the most for wordings that training never shows. The shipped weights come from a run in
several parts: the learning rate fell to zero at steps 1450, 1800, 3250, 3750 and 4150, and was
raised to a part of its peak in between; weights were averaged
(`boardfit.converters.sample.average`) at steps 3250, 3750 and at the end.
A run in one go gives a model of the same kind, not the same bits.

## Known limits

- English only, and only the requests above. Anything else is forced into the nearest one.
- Rare pairs of number and unit are sometimes wrong (times with "quarter to", hours as words), so a
  program should repeat what it understood before it acts.
- One request per message. "Lights off and heating on" gives one command, or a wrong one.
- It can repeat the user's name if it was told in the same chat, and uses nothing else from earlier
  turns.
- Long or unusual names may lose letters when copied; see the "unseen names" column.
"""


def card_text(found: dict[str, Any]) -> str:
    """The whole card for the results in `found`."""
    shape = Config()
    training = found["training"]
    prompt = render_prompt([{"role": "user", "content": "turn on the kitchen lights"}])
    assert DEFAULT_SYSTEM in prompt
    verbs = list(dict.fromkeys(form.do for form in ALL_FORMS))
    return _CARD.format(
        n_millions=f"{training['n_parameters'] / 1e6:.1f}",
        n_steps=training["n_steps"],
        train_minutes=round(training["train_s"] / 60),
        verbs=", ".join(f"`{verb}`" for verb in verbs),
        keys=", ".join(f"`{key}`" for key in KEY_ORDER),
        n_topics=len(plain.TOPICS),
        begin=results.BEGIN,
        table=results.table(found),
        end=results.END,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        inner=shape.intermediate_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab_size,
        context=shape.max_position_embeddings,
        prompt="\n".join(f"    {line}" for line in prompt.splitlines()),
    )


def main() -> None:
    """Write the card of the shipped model again."""
    results.write_text(MODEL_DIR / "README.md", card_text(results.load()))


if __name__ == "__main__":
    main()
