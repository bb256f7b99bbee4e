"""What the demo drops, and the configuration that it runs on. Pure; raises nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Final

MODEL: Final = "gpt-5-mini"

KEY: Final = "sk-simulated"
"""Not a key to anything: the simulator that the demo starts is told to accept it."""

# Everything that waits is quicker than by default; nothing else differs.
_CONFIG: Final = """\
# Made by `promptspool demo`: quick, and pointed at a simulated provider on this machine.

[spool]
path = "spool"
settle = "200ms"
rescan = "1s"

[providers.openai]
base_url = "{base_url}"
api_key_env = "OPENAI_API_KEY"
lookup_grace = "1s"

[polling]
first = "200ms"
cap = "600ms"

[retry]
request_backoff = "500ms"

[profiles.default]
model = "{model}"
system = "Answer in one sentence."

[profiles.reviews]
model = "{model}"
prompt = "Is this review of a {{{{ product }}}} positive? Say yes or no: {{{{ review }}}}"

[log]
format = "json"
"""

_QUESTIONS: Final = """\
Why is the sky dark at night?
How do bees find their way home?
What makes bread rise?
Who drew the first map of the Moon?
"""

_REVIEWS: Final = (
    ("kettle", "Boils in no time, and the lid does not rattle."),
    ("kettle", "Leaked on the second day. It went back."),
    ("lamp", "Warm light, heavy foot, no flicker. Lovely."),
    ("lamp", "The switch is where nobody would look for it."),
    ("rucksack", "Two years of rain and still dry inside."),
    ("rucksack", "The zip gave up before the holiday did."),
)

_TICKETS: Final = (
    "My invoice for May shows the old address. Can you send it again?",
    "The parcel says delivered, but nobody has seen it.",
    "Here are all 4,000 mails of our thread, please read them. [[fail:400]]",
    "How do I change the language of the app?",
    "I was charged twice for one order. [[fail:500 once]]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prop:
    """One file to drop."""

    name: str
    """Its path below `inbox/`."""
    content: str
    remark: str
    """What there is to know about it, for people."""


def config(base_url: str) -> str:
    """Return the demo's `promptspool.toml`."""
    return _CONFIG.format(base_url=base_url, model=MODEL)


def props() -> list[Prop]:
    """Return the files to drop, in three shapes that people have."""
    return [
        Prop(
            name="questions.txt",
            content=_QUESTIONS,
            remark="one prompt a line",
        ),
        Prop(
            name="reviews/may.csv",
            content=_table(),
            remark="a table; a template makes prompts of its columns",
        ),
        Prop(
            name="tickets.jsonl",
            content="".join(_ticket(*row) for row in enumerate(_TICKETS, start=1)),
            remark="ready batch requests; two will fail, one of them once",
        ),
    ]


def _table() -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "product", "review"])
    table.writerows((f"review-{number}", *row) for number, row in enumerate(_REVIEWS, start=1))

    return text.getvalue()


def _ticket(number: int, text: str) -> str:
    system = {"role": "system", "content": "Draft a short and friendly reply."}
    messages = [system, {"role": "user", "content": text}]

    return _line(
        {
            "custom_id": f"ticket-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": messages},
        }
    )


def _line(row: dict[str, object]) -> str:
    return json.dumps(row) + "\n"
