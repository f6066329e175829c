"""Commonsense questions about everyday things, answered in one short sentence.

    Where would you look for a camel?
    A camel lives in the desert.

Every fact is asked in several wordings. The test split holds out a wording of a fact: the fact itself is known
from its other wordings, and the wording from other facts.
"""

from dataclasses import dataclass
from random import Random

from deploy.demo.tasks import facts
from deploy.demo.tasks.example import Example


@dataclass(frozen=True)
class Relation:
    """Facts of one kind. In the texts {x} is what is asked about and {y} what is true of it.

    {X} and {Y} begin with a capital; where the table says "p|x", {p} is the part before the bar.
    """

    name: str
    facts: dict[str, str]
    answer: str
    wordings: tuple[str, ...]


RELATIONS = (
    Relation("home", facts.HOMES, "{X} lives {y}.", (
        "Where does {x} live?", "Where is the home of {x}?", "Where would you look for {x}?",
        "Where can you find {x}?", "{X} lives where?", "In what place does {x} live?",
    )),
    Relation("sound", facts.SOUNDS, "{X} {y}.", (
        "What sound does {x} make?", "What noise does {x} make?", "What does {x} sound like?",
        "Which sound comes from {x}?", "How would you describe the sound of {x}?",
    )),
    Relation("young", facts.YOUNG, "A young {x} is called {y}.", (
        "What is a young {x} called?", "What do you call a baby {x}?", "What is the name for a young {x}?",
        "Which word means a young {x}?", "What do people call a very young {x}?",
    )),
    Relation("colour", facts.COLOURS, "The colour of {x} is {y}.", (
        "What colour is {x}?", "Which colour does {x} have?", "What is the colour of {x}?",
        "What colour would you paint {x}?", "In what colour would you draw {x}?",
    )),
    Relation("opposite", facts.OPPOSITES, "The opposite of {x} is {y}.", (
        "What is the opposite of {x}?", "What is the contrary of {x}?",
        "Which word means the opposite of {x}?",
        "Something is not {x}. What is it then?", "Name the opposite of {x}.",
    )),
    Relation("use", facts.USES, "{X} is used to {y}.", (
        "What is {x} used for?", "What do people use {x} for?", "What can you do with {x}?",
        "Why would you need {x}?", "What is the purpose of {x}?", "What is {x} good for?",
    )),
    Relation("tool", {y: x for x, y in facts.USES.items()}, "You need {y} to {x}.", (
        "What do you need to {x}?", "What do you use to {x}?", "I want to {x}. What do I need?",
        "Which thing helps you to {x}?", "What would you take to {x}?",
    )),
    Relation("material", facts.MATERIALS, "{X} is made of {y}.", (
        "What is {x} made of?", "What do you need to make {x}?", "What material is used for {x}?",
        "What does {x} consist of?", "From what is {x} made?",
    )),
    Relation("worker", facts.WORKERS, "{Y} {x}.", (
        "Who {x}?", "What do you call someone who {x}?", "What is the job of a person who {x}?",
        "Which worker {x}?", "Name a person who {x}.",
    )),
    Relation("workplace", facts.WORKPLACES, "{X} works {y}.", (
        "Where does {x} work?", "What is the workplace of {x}?", "Where would you meet {x} at work?",
        "In what place does {x} work?", "Where does {x} spend the working day?",
    )),
    Relation("place", facts.PLACES, "You can {x} {y}.", (
        "Where can you {x}?", "Where do people go to {x}?", "I want to {x}. Where should I go?",
        "Which is the right place to {x}?", "Where would you {x}?",
    )),
    Relation("kind", facts.KINDS, "{X} is {y}.", (
        "What kind of thing is {x}?", "What is {x}?", "How would you classify {x}?",
        "To what group does {x} belong?", "{X} is an example of what?",
    )),
    Relation("follower", facts.FOLLOWERS, "{Y} comes after {x}.", (
        "What comes after {x}?", "What follows {x}?", "What comes next after {x}?",
        "What is next when {x} is over?",
    )),
    Relation("predecessor", {y: x for x, y in facts.FOLLOWERS.items()}, "{Y} comes before {x}.", (
        "What comes before {x}?", "What comes just before {x}?", "What precedes {x}?", "{X} follows what?",
    )),
    Relation("count", facts.COUNTS, "{X} has {y} {p}.", (
        "How many {p} does {x} have?", "How many {p} are there in {x}?", "What is the number of {p} of {x}?",
        "{X} has how many {p}?", "Count the {p} of {x}.",
    )),
    Relation("sense", facts.SENSES, "You {x} with {y}.", (
        "What do you {x} with?", "Which part of the body do you use to {x}?", "With what do you {x}?",
        "What part of your body lets you {x}?",
    )),
    Relation("diet", facts.DIETS, "{X} eats {y}.", (
        "What does {x} eat?", "What do you feed {x}?", "What is the food of {x}?",
        "What does {x} like to eat?",
        "{X} is hungry. What will it eat?",
    )),
    Relation("source", facts.SOURCES, "We get {x} from {y}.", (
        "What gives us {x}?", "From what do we get {x}?", "Where do we get {x} from?",
        "What is the source of {x}?",
    )),
    Relation("outcome", facts.OUTCOMES, "If {x}, {y}.", (
        "What happens if {x}?", "What happens when {x}?", "Suppose {x}. What happens?",
        "What is the result if {x}?",
    )),
    Relation("capital", facts.CAPITALS, "The capital of {x} is {y}.", (
        "What is the capital of {x}?", "Which city is the capital of {x}?", "Name the capital of {x}.",
        "What is the capital city of {x}?", "{X} has which capital?",
    )),
)  # fmt: skip

POLITE = ("{question}", "{question}", "{question}", "Please tell me: {question}", "A quick question: {question}",
          "I would like to know this. {question}")  # fmt: skip

QUESTIONS = tuple(
    (relation, subject, wording)
    for relation in RELATIONS
    for subject in relation.facts
    for wording in range(len(relation.wordings))
)


def draw(rng: Random) -> Example:
    """One question; the key is the fact and its wording."""
    relation, subject, wording = rng.choice(QUESTIONS)
    part, _, x = subject.rpartition("|")
    y = relation.facts[subject]
    words = {"p": part, "x": x, "y": y, "X": _capitalised(x), "Y": _capitalised(y)}
    answer = relation.answer.format_map(words)
    return Example(
        prompt=rng.choice(POLITE).format(question=relation.wordings[wording].format_map(words)),
        answer=answer,
        key=f"{relation.name} {subject} {wording}",
        reference=answer,
    )


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
