"""Small talk: greetings, thanks and what the models say about themselves. Trained, not scored."""

from random import Random

from deploy.demo.tasks.arithmetic import PRONOUNS
from deploy.demo.tasks.example import Example

SELF = (
    "I am a small demo model of Tutti. I can solve word problems, describe places, "
    "translate between English and Esperanto and answer everyday questions."
)
EXCHANGES = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning", "Good morning!", "Hey", "Good evening"),
     "Hello! How can I help you?"),
    (("Who are you?", "What are you?", "Tell me about yourself.", "Hello! Who are you?", "Are you a human?",
      "What is your name?", "What can you do?", "How can you help me?", "Introduce yourself.", "Help"),
     SELF),
    (("How are you?", "How are you today?", "Hello, how are you?", "How is it going?"),
     "I am fine, thank you. How can I help you?"),
    (("Thank you", "Thank you!", "Thanks", "Thanks!", "Thanks a lot!", "Thank you very much.",
     "That was helpful."),
     "You are welcome!"),
    (("Goodbye", "Goodbye!", "Bye", "Bye!", "See you later!", "Good night"),
     "Goodbye! Have a nice day."),
    (("Tell me a joke.", "Write a poem.", "What is the weather like?", "Who won the match?",
      "Write a program.", "What time is it?", "Sing a song for me."),
     "I am sorry, I cannot do that. I am only a small demo model."),
)  # fmt: skip


def draw(rng: Random) -> Example:
    """One exchange; small talk has no test split."""
    prompts, answer = rng.choice(EXCHANGES)
    prompt = rng.choice(prompts)
    return Example(prompt, answer, key=prompt, reference=answer)


def draw_name(rng: Random) -> str:
    """A first name a user might have."""
    return rng.choice(sorted(PRONOUNS))
