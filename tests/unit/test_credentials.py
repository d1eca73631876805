"""Credentials on disk: three files that always belong together, and what is wrong with some in words."""

import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import Failure
from core.identities import Identity, Role
from core.infra import certificates, credentials
from core.infra.credentials import Credentials

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
NODE = Identity(cluster_id="clu_1", role=Role.NODE, name="nod_1")


@pytest.fixture
def authority() -> certificates.Authority:
    return certificates.new_authority("clu_1", NOW)


def made(authority: certificates.Authority, identity: Identity = NODE, at: datetime = NOW) -> Credentials:
    request = certificates.new_request(identity)
    given = certificates.issued(authority, request.csr_pem, identity, at)
    return Credentials(
        key_pem=request.key_pem, certificate_pem=given.certificate_pem, authority_pem=authority.certificate_pem
    )


def test_what_is_stored_is_read_and_only_by_its_owner(authority: certificates.Authority, tmp_path: Path) -> None:
    given, place = made(authority), tmp_path / "tls"
    assert credentials.load(place) is None
    credentials.store(place, given)
    assert credentials.load(place) == given
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()} == {0o600}


def test_older_ones_go_when_newer_ones_are_there(authority: certificates.Authority, tmp_path: Path) -> None:
    for _ in range(3):
        newest = made(authority)
        credentials.store(tmp_path / "tls", newest)
    assert credentials.load(tmp_path / "tls") == newest
    assert len(list(tmp_path.iterdir())) == 2
    credentials.remove(tmp_path / "tls")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_a_key_of_one_and_a_certificate_of_another(
    authority: certificates.Authority, tmp_path: Path
) -> None:
    known = [made(authority) for _ in range(4)]
    credentials.store(tmp_path / "tls", known[0])
    ended, seen = threading.Event(), []

    def read() -> None:
        while not ended.is_set():
            seen.append(credentials.load(tmp_path / "tls"))

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(60):
        credentials.store(tmp_path / "tls", known[count % 4])
    ended.set()
    reader.join()
    assert seen
    assert all(item in known for item in seen)


def test_a_store_that_fails_leaves_what_was_there(authority: certificates.Authority, tmp_path: Path) -> None:
    given = made(authority)
    credentials.store(tmp_path / "tls", given)
    later = made(authority)
    (tmp_path / f"tls-{later.holder.serial}").mkdir()
    (tmp_path / f"tls-{later.holder.serial}" / "authority.pem").mkdir()
    with pytest.raises(OSError):
        credentials.store(tmp_path / "tls", later)
    assert credentials.load(tmp_path / "tls") == given


def test_a_missing_file_is_told(authority: certificates.Authority, tmp_path: Path) -> None:
    credentials.store(tmp_path / "tls", made(authority))
    os.unlink(tmp_path / "tls" / "key.pem")
    with pytest.raises(Failure, match="cannot be read"):
        credentials.load(tmp_path / "tls")


def test_only_what_was_asked_for_is_taken(authority: certificates.Authority) -> None:
    good = made(authority)
    assert credentials.checked(good, NODE, NOW) is good
    stranger = certificates.new_authority("clu_1", NOW)
    other = Identity(cluster_id="clu_1", role=Role.NODE, name="nod_2")
    wrong = {
        "not of slice://clu_1/node/nod_1": made(authority, other),
        "another key": Credentials(**{**vars(good), "key_pem": made(authority).key_pem}),
        "has no key": Credentials(**{**vars(good), "key_pem": "nothing"}),
        "not signed": Credentials(**{**vars(good), "authority_pem": stranger.certificate_pem}),
        "damaged": Credentials(**{**vars(good), "certificate_pem": "nothing"}),
    }
    for words, given in wrong.items():
        with pytest.raises(Failure, match=words) as caught:
            credentials.checked(given, NODE, NOW)
        assert caught.value.code == "node.certificate_invalid"


def test_one_of_several_roots_is_enough(authority: certificates.Authority) -> None:
    older = certificates.new_authority("clu_1", NOW)
    good = made(authority)
    both = Credentials(**{**vars(good), "authority_pem": older.certificate_pem + authority.certificate_pem})
    assert credentials.checked(both, NODE, NOW) is both


def test_a_wrong_clock_is_told_in_hours(authority: certificates.Authority) -> None:
    holder = made(authority).holder
    assert credentials.clock_fault(holder, NOW) == ""
    assert "2.0 h behind" in credentials.clock_fault(holder, NOW - timedelta(hours=2, minutes=5))
    assert "ran out 3.0 h ago" in credentials.clock_fault(holder, NOW + timedelta(hours=27))
