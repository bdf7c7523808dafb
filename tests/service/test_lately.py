"""An answer counts for a while, a bad one too, and several callers ask once."""

from concurrent.futures import ThreadPoolExecutor

from service.errors import BlobFull
from service.lately import Lately


def test_an_answer_is_remembered_whether_good_or_bad() -> None:
    asked: list[str] = []

    def good() -> None:
        asked.append("good")

    def bad() -> None:
        asked.append("bad")
        raise BlobFull("no room")

    for check, fault in ((good, ""), (bad, "no room")):
        asked.clear()
        lately = Lately(check, 60.0)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _, seen=lately: seen.fault(), range(40))) == {fault}
        assert len(asked) == 1


def test_it_is_asked_again_after_that() -> None:
    answers = [BlobFull("no room"), None]

    def check() -> None:
        if (found := answers.pop(0)) is not None:
            raise found

    lately = Lately(check, 0.0)
    assert [lately.fault(), lately.fault()] == ["no room", ""]
