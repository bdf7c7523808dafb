"""A name inside is a tenant's and an id's, and comes apart again."""

import os

from service.refs import Ids, home, id_of, ref_of, tenant_of


def test_a_ref_comes_apart_into_what_it_was_made_of() -> None:
    ref = ref_of("acme", "video_1")
    assert (tenant_of(ref), id_of(ref)) == ("acme", "video_1")
    assert home(ref) == "t/acme/videos/video_1"


def test_an_id_with_a_slash_names_no_other_tenants_job() -> None:
    """Whatever a client sends as an id stays below its own tenant."""
    ref = ref_of("acme", "../other/video_1")
    assert tenant_of(ref) == "acme" and ref != ref_of("other", "video_1")


def test_no_two_ids_are_the_same_not_even_in_a_forked_process() -> None:
    ids = Ids()
    mine = {ids.new() for _ in range(3 * Ids.AT_ONCE)}
    assert len(mine) == 3 * Ids.AT_ONCE and all(len(one) == 32 for one in mine)
    ids.new()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, ids.new().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 64).decode() != ids.new()
    os.close(reader)
    os.close(writer)
