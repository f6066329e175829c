"""Inbox: the queue that a member under test delivers its answers to."""

import threading
import time

LIMIT = 30


class Inbox:
    """What a member delivers, one by one, with the time it came."""

    def __init__(self):
        self.received, self.times = [], []
        self.changed = threading.Condition()

    def __call__(self, member, what):
        with self.changed:
            for one in what if isinstance(what, list) else [what]:
                self.received.append(one)
                self.times.append(time.monotonic())
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.received) >= count, LIMIT), self.received
            return self.received
