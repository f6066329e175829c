"""Translation between English and a fragment of Esperanto, in both directions.

    Translate into Esperanto: The small cat sees the red houses.
    La malgranda kato vidas la ruĝajn domojn.

Esperanto is regular (nouns end in -o, adjectives in -a, plurals add -j, objects add -n), so a small lexicon
and one grammar give pairs of sentences with exactly one right translation.
"""

from dataclasses import dataclass
from random import Random

from deploy.demo.tasks.example import Example


@dataclass(frozen=True)
class Verb:
    """An English verb's forms and the Esperanto stem."""

    base: str
    third: str
    past: str
    stem: str


ANIMATE = {
    "cat": "kat", "dog": "hund", "horse": "ĉeval", "bird": "bird", "girl": "knabin", "boy": "knab",
    "teacher": "instruist", "doctor": "kuracist", "friend": "amik", "king": "reĝ", "sailor": "marist",
    "farmer": "kamparan", "student": "student", "painter": "pentrist", "neighbour": "najbar",
}  # fmt: skip

THINGS = {
    "house": "dom", "book": "libr", "letter": "leter", "table": "tabl", "chair": "seĝ", "apple": "pom",
    "flower": "flor", "tree": "arb", "ship": "ŝip", "bridge": "pont", "lamp": "lamp", "picture": "bild",
    "garden": "ĝarden", "mountain": "mont", "window": "fenestr", "door": "pord", "hat": "ĉapel",
    "key": "ŝlosil", "stone": "ŝton", "song": "kant",
}  # fmt: skip

PLACES = {
    "garden": "ĝarden", "house": "dom", "city": "urb", "school": "lernej", "forest": "arbar",
    "village": "vilaĝ", "kitchen": "kuirej", "market": "bazar",
}  # fmt: skip

ADJECTIVES = {
    "big": "grand", "small": "malgrand", "old": "malnov", "new": "nov", "red": "ruĝ", "blue": "blu",
    "green": "verd", "white": "blank", "black": "nigr", "beautiful": "bel", "good": "bon", "happy": "feliĉ",
    "strong": "fort", "quiet": "kviet", "expensive": "multekost", "heavy": "pez",
}  # fmt: skip

TRANSITIVE = (
    Verb("see", "sees", "saw", "vid"),
    Verb("love", "loves", "loved", "am"),
    Verb("find", "finds", "found", "trov"),
    Verb("buy", "buys", "bought", "aĉet"),
    Verb("have", "has", "had", "hav"),
    Verb("bring", "brings", "brought", "alport"),
    Verb("paint", "paints", "painted", "pentr"),
    Verb("seek", "seeks", "sought", "serĉ"),
    Verb("forget", "forgets", "forgot", "forges"),
    Verb("show", "shows", "showed", "montr"),
)
INTRANSITIVE = (
    Verb("sleep", "sleeps", "slept", "dorm"),
    Verb("run", "runs", "ran", "kur"),
    Verb("sing", "sings", "sang", "kant"),
    Verb("work", "works", "worked", "labor"),
    Verb("dance", "dances", "danced", "danc"),
    Verb("wait", "waits", "waited", "atend"),
    Verb("sit", "sits", "sat", "sid"),
    Verb("live", "lives", "lived", "loĝ"),
)

TENSES = {"present": "as", "past": "is", "future": "os"}
ADVERBS = {"present": ("today", "hodiaŭ"), "past": ("yesterday", "hieraŭ"), "future": ("tomorrow", "morgaŭ")}
PREPOSITIONS = {"in": "en", "near": "apud", "behind": "malantaŭ"}

TO_ESPERANTO = (
    "Translate into Esperanto: {sentence}",
    "Translate the sentence from English to Esperanto.\n{sentence}",
    "How do you say this in Esperanto? {sentence}",
    "Say this in Esperanto: {sentence}",
)
TO_ENGLISH = (
    "Translate into English: {sentence}",
    "Translate the sentence from Esperanto to English.\n{sentence}",
    "What does this mean in English? {sentence}",
    "Say this in English: {sentence}",
)


@dataclass(frozen=True)
class Phrase:
    """The same words in both languages."""

    english: str
    esperanto: str


def draw(rng: Random) -> Example:
    """One sentence to translate, either way; the key is the English sentence."""
    sentence = _sentence(rng)
    if rng.random() < 0.5:
        prompt, answer = rng.choice(TO_ESPERANTO).format(sentence=sentence.english), sentence.esperanto
    else:
        prompt, answer = rng.choice(TO_ENGLISH).format(sentence=sentence.esperanto), sentence.english
    return Example(prompt, answer, key=sentence.english, reference=answer)


def _sentence(rng: Random) -> Phrase:
    tense = rng.choice(sorted(TENSES))
    plural = rng.random() < 0.4
    subject = _noun_phrase(rng, ANIMATE, plural=plural)
    if rng.random() < 0.6:
        verb = rng.choice(TRANSITIVE)
        object_ = _noun_phrase(rng, {**ANIMATE, **THINGS}, plural=rng.random() < 0.4, ending="n")
        english, esperanto = [object_.english], [object_.esperanto]
    else:
        verb = rng.choice(INTRANSITIVE)
        place = rng.choice(sorted(PLACES))
        preposition = rng.choice(sorted(PREPOSITIONS))
        english = [f"{preposition} the {place}"]
        esperanto = [f"{PREPOSITIONS[preposition]} la {PLACES[place]}o"]
    if rng.random() < 0.3:
        english.append(ADVERBS[tense][0])
        esperanto.append(ADVERBS[tense][1])
    return Phrase(
        _as_sentence([subject.english, _conjugate(verb, tense, plural), *english]),
        _as_sentence([subject.esperanto, verb.stem + TENSES[tense], *esperanto]),
    )


def _noun_phrase(rng: Random, nouns: dict[str, str], *, plural: bool, ending: str = "") -> Phrase:
    """An article, perhaps an adjective, and a noun; `ending` is the Esperanto mark of the object."""
    noun = rng.choice(sorted(nouns))
    suffix = ("j" if plural else "") + ending
    english = [f"{noun}s" if plural else noun]
    esperanto = [f"{nouns[noun]}o{suffix}"]
    if rng.random() < 0.5:
        adjective = rng.choice(sorted(ADJECTIVES))
        english.insert(0, adjective)
        esperanto.insert(0, f"{ADJECTIVES[adjective]}a{suffix}")
    if rng.random() < 0.6:
        english.insert(0, "the")
        esperanto.insert(0, "la")
    elif not plural:
        english.insert(0, "an" if english[0][0] in "aeiou" else "a")
    return Phrase(" ".join(english), " ".join(esperanto))


def _conjugate(verb: Verb, tense: str, plural: bool) -> str:
    if tense == "future":
        return f"will {verb.base}"
    if tense == "past":
        return verb.past
    return verb.base if plural else verb.third


def _as_sentence(parts: list[str]) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
