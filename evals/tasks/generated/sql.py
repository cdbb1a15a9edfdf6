"""Questions about one small table, answered by an SQL query.

Contract: the prompt names the table and its columns, and the query follows from the prompt
alone; keyed by the value asked for, or by table and column where there is none. Not covered:
joins, grouping, several conditions, and column types other than text and whole numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from evals.tasks.generated.example import Example, ask
from evals.tasks.generated.skills import open_name
from evals.tasks.generated.tables import ANIMALS, CITIES, COLOURS, WORDS

SCHEMA_FORMS: Final = (
    "Table {t} ({c}). {q}", "Write SQL. Table: {t}. Columns: {c}. {q}",
    "table: {t}\ncolumns: {c}\nQ: {q}", "Given the table {t} with the columns {c}, write SQL: {q}",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table with its text columns and its number columns."""

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


TABLES: Final = (
    Table("people", ("name", "city", "job"), ("age", "height")),
    Table("books", ("title", "author", "topic"), ("year", "pages")),
    Table("films", ("title", "director", "country"), ("year", "length")),
    Table("shops", ("name", "city", "owner"), ("size", "sales")),
    Table("cars", ("brand", "colour", "owner"), ("year", "price")),
    Table("pets", ("name", "animal", "owner"), ("age", "weight")),
    Table("songs", ("title", "singer", "album"), ("year", "length")),
    Table("teams", ("name", "coach", "city"), ("points", "wins")),
    Table("orders", ("customer", "product", "status"), ("price", "amount")),
    Table("trains", ("number", "start", "end"), ("speed", "delay")),
    Table("schools", ("name", "city", "teacher"), ("pupils", "rooms")),
    Table("rivers", ("name", "country", "end"), ("length", "depth")),
)


def _value(rng: random.Random, column: str) -> str:
    """A text value that suits a column."""
    known = {"city": CITIES, "start": CITIES, "end": CITIES, "colour": COLOURS, "animal": ANIMALS}
    if column in known:
        return rng.choice(known[column])
    return open_name(rng) if rng.random() < 0.6 else rng.choice(WORDS)


def _equal(rng: random.Random, table: Table) -> tuple[str, str, str]:
    """One column where another has a value."""
    where = rng.choice(table.texts)
    wanted = rng.choice([c for c in (*table.texts, *table.numbers) if c != where])
    value = _value(rng, where)
    question = rng.choice(
        (f"What is the {wanted} where the {where} is {value}?",
         f"Show the {wanted} of the {table.name} with {where} {value}.",
         f"Which {wanted} has the {where} {value}?")
    )  # fmt: skip
    query = f"SELECT {wanted} FROM {table.name} WHERE {where} = '{value}'"
    return question, query, f"{wanted}:{where}:{value}"


def _bound(rng: random.Random, table: Table) -> tuple[str, str, str]:
    """One column where a number is above or below a bound."""
    where, wanted = rng.choice(table.numbers), rng.choice(table.texts)
    word, sign = rng.choice(
        (("more than", ">"), ("above", ">"), ("less than", "<"), ("below", "<"))
    )
    bound = rng.choice((rng.randint(2, 99), rng.randint(100, 2999)))
    question = rng.choice(
        (f"Which {wanted} has a {where} {word} {bound}?",
         f"Show the {wanted} of the {table.name} with {where} {word} {bound}.",
         f"List every {wanted} where the {where} is {word} {bound}.")
    )  # fmt: skip
    query = f"SELECT {wanted} FROM {table.name} WHERE {where} {sign} {bound}"
    return question, query, f"{where}{sign}{bound}"


def _how_many(rng: random.Random, table: Table) -> tuple[str, str, str]:
    """The number of rows with a value."""
    where = rng.choice(table.texts)
    value = _value(rng, where)
    question = rng.choice(
        (f"How many {table.name} have the {where} {value}?",
         f"Count the {table.name} where the {where} is {value}.")
    )  # fmt: skip
    query = f"SELECT COUNT(*) FROM {table.name} WHERE {where} = '{value}'"
    return question, query, f"count:{where}:{value}"


def _extreme(rng: random.Random, table: Table) -> tuple[str, str, str]:
    """The largest, smallest or mean number of a column."""
    column = rng.choice(table.numbers)
    word, function = rng.choice(
        (("highest", "MAX"), ("largest", "MAX"), ("lowest", "MIN"), ("smallest", "MIN"),
         ("average", "AVG"), ("total", "SUM"))
    )  # fmt: skip
    question = rng.choice(
        (f"What is the {word} {column} of the {table.name}?",
         f"Find the {word} {column} in {table.name}.")
    )  # fmt: skip
    query = f"SELECT {function}({column}) FROM {table.name}"
    return question, query, f"{word}:{column}:{table.name}"


def _order(rng: random.Random, table: Table) -> tuple[str, str, str]:
    """A column, sorted by a number."""
    wanted, column = rng.choice(table.texts), rng.choice(table.numbers)
    word, order = rng.choice((("largest", "DESC"), ("highest", "DESC"), ("smallest", "ASC")))
    question = f"List the {wanted} of all {table.name}, {word} {column} first."
    query = f"SELECT {wanted} FROM {table.name} ORDER BY {column} {order}"
    return question, query, f"order:{wanted}:{word}:{column}:{table.name}"


def text_to_sql(rng: random.Random) -> Example:
    """One question about one table, with its schema."""
    table = rng.choice(TABLES)
    kind = rng.choice((_equal, _equal, _equal, _bound, _bound, _how_many, _extreme, _order))
    question, query, key = kind(rng, table)
    columns = [*table.texts, *table.numbers]
    rng.shuffle(columns)
    prompt = rng.choice(SCHEMA_FORMS).format(t=table.name, c=", ".join(columns), q=question)
    return ask("sql", prompt, query, (f"sql:{key}",), exact=True)
