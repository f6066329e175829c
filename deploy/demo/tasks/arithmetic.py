"""Arithmetic word problems, answered with the working shown.

Anna has 12 apples. She buys 7 more. How many apples does Anna have now?
Anna has 12 + 7 = 19 apples. The answer is 19.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from deploy.demo.tasks.example import Example

PRONOUNS = {
    "Anna": "she", "Ben": "he", "Clara": "she", "David": "he", "Emma": "she", "Felix": "he",
    "Grace": "she", "Henry": "he", "Ida": "she", "Jack": "he", "Lucy": "she", "Martin": "he",
    "Nina": "she", "Oscar": "he", "Paula": "she", "Tom": "he",
}  # fmt: skip

THINGS = (
    "apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "nuts",
    "oranges", "pencils", "pictures", "shells", "stamps", "stones", "tickets", "toys",
)  # fmt: skip

CONTAINERS = ("bags", "baskets", "boxes", "jars")


@dataclass(frozen=True)
class Numbers:
    """The numbers of one problem: what the question states, the result, and a result on the way to it."""

    stated: tuple[int, ...]
    result: int
    middle: int = 0


def _sum(rng: Random) -> Numbers:
    a, b = rng.randint(2, 49), rng.randint(2, 29)
    return Numbers((a, b), a + b)


def _difference(rng: Random) -> Numbers:
    a = rng.randint(5, 69)
    b = rng.randint(2, min(a - 2, 29))
    return Numbers((a, b), a - b)


def _product(rng: Random) -> Numbers:
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return Numbers((a, b), a * b)


def _quotient(rng: Random) -> Numbers:
    b, result = rng.randint(2, 9), rng.randint(2, 9)
    return Numbers((b * result, b), result)


def _sum_then_difference(rng: Random) -> Numbers:
    first = _sum(rng)
    c = rng.randint(2, min(first.result - 2, 19))
    return Numbers((*first.stated, c), first.result - c, first.result)


def _product_then_sum(rng: Random) -> Numbers:
    first = _product(rng)
    c = rng.randint(2, 19)
    return Numbers((*first.stated, c), first.result + c, first.result)


@dataclass(frozen=True)
class Problem:
    """A kind of problem. {a}, {b}, {c} are the stated numbers, {m} the middle result, {r} the result."""

    numbers: Callable[[Random], Numbers]
    question: str
    working: str


PROBLEMS = (
    Problem(_sum, "What is {a} + {b}?", "{a} + {b} = {r}."),
    Problem(_difference, "What is {a} - {b}?", "{a} - {b} = {r}."),
    Problem(_product, "What is {a} * {b}?", "{a} * {b} = {r}."),
    Problem(_quotient, "What is {a} / {b}?", "{a} / {b} = {r}."),
    Problem(_sum, "{name} has {a} {things}. {She} buys {b} more. How many {things} does {name} have now?",
            "{name} has {a} + {b} = {r} {things}."),
    Problem(_sum, "{name} has {a} {things} and {other} has {b} {things}. How many {things} do they have together?",
            "Together they have {a} + {b} = {r} {things}."),
    Problem(_sum, "There are {a} {things} on the table. {name} puts {b} more {things} there. "
            "How many {things} are on the table?",
            "There are {a} + {b} = {r} {things} on the table."),
    Problem(_sum, "{name} found {a} {things} in the morning and {b} in the afternoon. "
            "How many {things} did {she} find in all?",
            "{name} found {a} + {b} = {r} {things}."),
    Problem(_sum, "{other} has {a} {things}. {name} has {b} more {things} than {other}. "
            "How many {things} does {name} have?",
            "{name} has {a} + {b} = {r} {things}."),
    Problem(_difference, "{name} has {a} {things}. {She} gives {b} of them to {other}. "
            "How many {things} does {name} have left?",
            "{name} has {a} - {b} = {r} {things} left."),
    Problem(_difference, "There were {a} {things} in the box. {name} took out {b} of them. "
            "How many {things} are still in the box?",
            "There are {a} - {b} = {r} {things} in the box."),
    Problem(_difference, "{name} had {a} {things} and lost {b}. How many {things} are left?",
            "{name} has {a} - {b} = {r} {things} left."),
    Problem(_difference, "{name} wants to collect {a} {things}. {She} has {b} already. "
            "How many more {things} does {she} need?",
            "{name} needs {a} - {b} = {r} more {things}."),
    Problem(_difference, "{name} has {a} {things} and {other} has {b}. "
            "How many more {things} does {name} have than {other}?",
            "{name} has {a} - {b} = {r} more {things}."),
    Problem(_product, "{name} has {a} {containers} with {b} {things} in each. How many {things} does {she} have?",
            "{name} has {a} * {b} = {r} {things}."),
    Problem(_product, "Every day {name} draws {b} {things}. How many {things} does {she} draw in {a} days?",
            "{name} draws {a} * {b} = {r} {things}."),
    Problem(_product, "There are {a} {containers} on the shelf. Each holds {b} {things}. "
            "How many {things} are there altogether?",
            "There are {a} * {b} = {r} {things}."),
    Problem(_quotient, "{name} shares {a} {things} equally among {b} friends. "
            "How many {things} does each friend get?",
            "Each friend gets {a} / {b} = {r} {things}."),
    Problem(_quotient, "{name} puts {a} {things} into {b} {containers}, the same number in each. "
            "How many {things} are in each?",
            "Each holds {a} / {b} = {r} {things}."),
    Problem(_sum_then_difference, "{name} has {a} {things}. {She} gets {b} more and then gives away {c}. "
            "How many {things} does {she} have in the end?",
            "First {name} has {a} + {b} = {m} {things}. Then {she} has {m} - {c} = {r} {things}."),
    Problem(_sum_then_difference, "On Monday {name} bought {a} {things}, on Tuesday {b}. "
            "On Wednesday {she} sold {c}. How many {things} does {name} still have?",
            "First {name} has {a} + {b} = {m} {things}. Then {she} has {m} - {c} = {r} {things}."),
    Problem(_product_then_sum, "{name} has {a} {containers} of {b} {things} and {c} loose {things}. "
            "How many {things} does {she} have in total?",
            "In the {containers} there are {a} * {b} = {m} {things}. "
            "In total {name} has {m} + {c} = {r} {things}."),
)  # fmt: skip


def draw(rng: Random) -> Example:
    """One word problem; the key is the kind of problem with its numbers, the reference the number asked for."""
    kind = rng.randrange(len(PROBLEMS))
    problem = PROBLEMS[kind]
    numbers = problem.numbers(rng)
    name, other = rng.sample(sorted(PRONOUNS), 2)
    words = {
        "name": name,
        "other": other,
        "she": PRONOUNS[name],
        "She": PRONOUNS[name].capitalize(),
        "things": rng.choice(THINGS),
        "containers": rng.choice(CONTAINERS),
        **dict(zip("abc", map(str, numbers.stated), strict=False)),
        "m": str(numbers.middle),
        "r": str(numbers.result),
    }
    return Example(
        prompt=problem.question.format_map(words),
        answer=f"{problem.working.format_map(words)} The answer is {numbers.result}.",
        key=f"{kind} {numbers.stated}",
        reference=str(numbers.result),
    )
