"""Data to text: the attributes of a place, described in one or two sentences.

    Describe the place.
    Data: name[The Golden Lamp], type[pub], food[Italian], area[city centre], family-friendly[yes]
    The Golden Lamp is a pub in the city centre that serves Italian food. It is good for families.

Which sentences are written follows from which attributes are given, so there is one right answer.
"""

from random import Random

from deploy.demo.tasks.example import Example

NAME_FIRST = (
    "Golden", "Silver", "Green", "Blue", "Old", "Little", "Royal", "Happy", "Quiet", "Copper", "White", "Lucky",
)  # fmt: skip
NAME_SECOND = (
    "Lamp", "Anchor", "Garden", "Bridge", "Lion", "Mill", "Star", "Tree", "Kettle", "Swan", "Harbour", "Table",
)  # fmt: skip

CHOICES = {
    "type": ("restaurant", "pub", "coffee shop", "hotel"),
    "food": ("Italian", "French", "Indian", "Chinese", "Japanese", "English", "Spanish", "Thai"),
    "price": ("cheap", "moderate", "high"),
    "rating": ("low", "average", "excellent"),
    "area": ("city centre", "riverside", "old town", "harbour"),
    "near": ("the museum", "the station", "the park", "the theatre", "the market", "the castle"),
    "family-friendly": ("yes", "no"),
}

PRICES = {"cheap": "a cheap", "moderate": "a moderately priced", "high": "an expensive"}
AREAS = {
    "city centre": "in the city centre",
    "riverside": "by the riverside",
    "old town": "in the old town",
    "harbour": "at the harbour",
}
RATINGS = {"low": "a low", "average": "an average", "excellent": "an excellent"}

REQUESTS = (
    "Describe the place.\nData: {data}",
    "Describe this place in natural language.\nData: {data}",
    "Write a short description.\nData: {data}",
    "Turn the data into text.\nData: {data}",
    "Put this into words: {data}",
)


def draw(rng: Random) -> Example:
    """One place with two to six attributes beside its name; the key is the set of attributes."""
    place = {"name": f"The {rng.choice(NAME_FIRST)} {rng.choice(NAME_SECOND)}"}
    optional = [attribute for attribute in CHOICES if attribute != "type"]
    given = {"type", *rng.sample(optional, rng.randint(1, 5))}
    place |= {attribute: rng.choice(values) for attribute, values in CHOICES.items() if attribute in given}
    listed = list(place.items())
    if rng.random() < 0.3:
        rng.shuffle(listed)
    data = ", ".join(f"{attribute}[{value}]" for attribute, value in listed)
    text = describe(place)
    return Example(rng.choice(REQUESTS).format(data=data), text, key=str(sorted(place.items())), reference=text)


def describe(place: dict[str, str]) -> str:
    """The text for a place."""
    opening = f"{place['name']} is {PRICES[place['price']] if 'price' in place else 'a'} {place['type']}"
    if "area" in place:
        opening += f" {AREAS[place['area']]}"
    if "near" in place:
        opening += f" near {place['near']}"
    if "food" in place:
        opening += f" that serves {place['food']} food"
    return " ".join([f"{opening}.", *_second_sentence(place)])


def _second_sentence(place: dict[str, str]) -> list[str]:
    """The sentence on rating and suitability for families, if either is known."""
    clauses = []
    if "rating" in place:
        clauses.append(f"has {RATINGS[place['rating']]} customer rating")
    if "family-friendly" in place:
        clauses.append("is good for families" if place["family-friendly"] == "yes" else "is not for families")
    return [f"It {' and '.join(clauses)}."] if clauses else []
