"""`python -m workers.courier`: tells clients' addresses that their jobs have ended.

Outside Celery, like the reaper, and on the CPU. What is due comes from `service.webhooks`, what is
posted goes through `service.outward`. Several couriers do no harm, and a killed one loses nothing.
"""

import logging
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from types import FrameType

from service.errors import AddressError, LedgerDown, NotFound
from service.ledger import Ledger, connect
from service.logs import about, set_up
from service.outward import Answer, Outward
from service.webhooks import Letter, Outbox, Secrets, body_of, headers_of
from workers.settings import Settings

log = logging.getLogger(__name__)

TRIES = 8
FIRST_WAIT_S = 5.0  # four times as long after each try: eight take between seven and eight hours
LONGEST_WAIT_S = 24 * 3600.0
AT_ONCE = 16
OF_ONE_TENANT = 4  # so that one whose server hangs holds up nobody else
LOOK_EVERY_S = 0.2


class Courier:
    """Rounds, one after the other. Raises nothing: without Redis, the next round tries."""

    def __init__(self, outbox: Outbox, keys: Secrets, ledger: Ledger, outward: Outward) -> None:
        self._outbox = outbox
        self._keys = keys
        self._ledger = ledger
        self._outward = outward
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="courier")
        self._out: dict[Future[None], Letter] = {}

    def round(self) -> None:
        """Send out as many letters as are due and there are hands for."""
        for future in [one for one in self._out if one.done()]:
            name, error = self._out.pop(future).name, future.exception()
            if error is not None:
                log.error("%s: not delivered", name, exc_info=error)
        try:
            while len(self._out) < AT_ONCE and (letter := self._next()) is not None:
                self._out[self._pool.submit(self.deliver, letter)] = letter
        except LedgerDown:
            log.warning("no ledger; trying again")

    def close(self) -> None:
        """Finish what is on its way."""
        self._pool.shutdown(wait=True)

    def deliver(self, letter: Letter) -> None:
        """One try, and what follows from it."""
        try:
            with about(letter.ref):
                self._try(letter)
        except NotFound:
            self._outbox.done(letter)  # deleted meanwhile
        except LedgerDown:
            log.warning("%s: left to its lease: no ledger", letter.name)
        except Exception as error:  # ours: recorded, and raised on into the log
            self._later(letter, f"{type(error).__name__} in the courier", wait_s(letter.tries))
            raise

    def _next(self) -> Letter | None:
        busy = Counter(letter.tenant for letter in self._out.values())
        return self._outbox.take([who for who, count in busy.items() if count >= OF_ONE_TENANT])

    def _try(self, letter: Letter) -> None:
        job = self._ledger.read(letter.ref)
        body = body_of(letter, job)
        headers = headers_of(letter, body, self._keys.valid(letter.tenant), int(time.time()))
        try:
            answer = self._outward.post(job.text("webhook") or "", body, headers)
        except AddressError as refusal:
            self._later(letter, f"The address {refusal}.", wait_s(letter.tries))
            return
        error = f"The receiver answered {answer.status}."
        if 200 <= answer.status < 300:
            self._outbox.done(letter)
            log.info("%s delivered at try %d", letter.name, letter.tries)
        elif answer.status in {408, 425, 429} or answer.status >= 500:
            self._later(letter, error, max(wait_s(letter.tries), asked_wait_s(answer)))
        else:
            self._give_up(letter, error)

    def _later(self, letter: Letter, error: str, after_s: float) -> None:
        if letter.tries >= TRIES:
            self._give_up(letter, error)
            return
        # What is wrong stands in the record; it may name the client's address.
        log.info("%s: try %d failed, again in %.0f s", letter.name, letter.tries, after_s)
        self._outbox.put_off(letter, error, after_s)

    def _give_up(self, letter: Letter, error: str) -> None:
        log.warning("%s given up at try %d", letter.name, letter.tries)
        self._outbox.give_up(letter, error)


def wait_s(tries: int) -> float:
    """Seconds before the next try, spread by a fifth so that many letters do not come at once."""
    return FIRST_WAIT_S * 4.0 ** (tries - 1) * random.uniform(0.8, 1.2)


def asked_wait_s(answer: Answer) -> float:
    """Seconds that the receiver asks for (RFC 9110 10.2.3: a number or a date), at most a day."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_WAIT_S)
    try:
        asked = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT_S)


def main() -> None:
    """Entry point. Ends on SIGTERM or SIGINT after the deliveries in hand."""
    set_up()
    settings = Settings()
    client = connect(settings)
    outward = Outward(settings.fetch_hosts, 0)
    outbox, keys = Outbox(client, settings), Secrets(client, settings)
    courier = Courier(outbox, keys, Ledger(client, settings), outward)
    stop = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while not stop.wait(LOOK_EVERY_S):
        courier.round()
    courier.close()


if __name__ == "__main__":
    main()
