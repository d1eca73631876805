"""How often somebody may do a thing: never more than the limit in any window, and never less."""

from hypothesis import given
from hypothesis import strategies as st

from controller.api.callers import address_of
from controller.identity.brake import Brake

gaps = st.lists(st.floats(0, 30, allow_nan=False), max_size=60)


@given(gaps, st.integers(1, 5))
def test_no_window_holds_more_than_the_limit_and_who_waits_as_told_gets_through(waits: list[float], limit: int) -> None:
    brake, now, done = Brake(limit=limit, window_s=10.0), 0.0, []
    for wait in waits:
        now += wait
        told_s = brake.wait_s("a", now)
        assert 0 <= told_s <= 10.0
        if told_s == 0:
            assert sum(1 for instant in done if now - instant < 10.0) < limit
            brake.note("a", now)
            done.append(now)
        else:
            assert sum(1 for instant in done if now - instant < 10.0) >= limit
            assert brake.wait_s("a", now + told_s + 1e-6) == 0


def test_one_name_does_not_hold_up_another_and_a_flood_of_names_takes_no_memory() -> None:
    brake = Brake(limit=1, window_s=10.0, names_max=3)
    for name in ("a", "b", "c", "d"):
        brake.note(name, 1.0)
    assert brake.wait_s("d", 1.5) == 9.5
    assert brake.wait_s("e", 1.5) == 0
    assert brake.wait_s("a", 1.5) == 0, "the oldest of four was forgotten"


def test_the_address_of_a_peer_is_read_from_grpcs_name_of_it() -> None:
    assert address_of("ipv4:10.0.0.7:51234") == "10.0.0.7"
    assert address_of("ipv6:%5B::1%5D:51234") == "::1"
    assert address_of("ipv6:[fe80::2]:1") == "fe80::2"
