"""The page of records, from their docstrings."""

import inspect
import re

from record_docs import fields_of, modules, records_of, summary

HEAD = """# Records

Records travel between steps and functions, and each is also a JSON file or a part of one: [Files](formats.md) lists the files. A record is
frozen and compared by value. Units stand in the names of fields; ratios are after over before. Reading refuses unknown keys, so a misspelt
or newer file is an error and not a silent default. A field without a default is required.

This page is written from the docstrings by `docs/site/generate.py`.
"""


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    for module in modules():
        if found := records_of(module):
            parts.append(f"## {module.__name__.removeprefix('edgecompress.').replace('.', '/')}\n\n{first_sentence(module.__doc__)}\n")
            parts += [render_record(record) for record in found]
    return "\n".join(parts)


def render_record(record: type) -> str:
    """Return a section with the summary of a record and the table of its fields."""
    lines = [f"### {record.__name__}\n"]
    if text := summary(record):
        lines.append(f"{escape(text)}\n")
    fields = fields_of(record)
    if fields:
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{f.name}` | `{f.type}` | {f.default} | {escape(f.meaning).replace('|', chr(92) + '|')} |" for f in fields]
    return "\n".join(lines) + "\n"


def first_sentence(text: str | None) -> str:
    return escape(" ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split()))


def escape(text: str) -> str:
    """Return text in which Markdown and HTML see no markup, outside of code spans."""
    spans = re.split(r"(`[^`]*`)", text)
    return "".join(span if span.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", span) for span in spans)
