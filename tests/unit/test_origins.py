"""Where remote engines may be: URLs as values, and addresses that are refused however they are written."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Failure
from core.origins import Origin, address_fault, is_loopback, parse_base_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com"),
        ("https://api.openai.com/", "https://api.openai.com"),
        ("HTTPS://Host.Example:8443/a/b/v1/", "https://host.example:8443/a/b"),
        ("https://host:443/x", "https://host/x"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://[::1]:5000/v1", "http://[::1]:5000"),
        ("http://10.1.2.3", "http://10.1.2.3"),
        ("http://localhost:80", "http://localhost"),
        ("https://8.8.8.8", "https://8.8.8.8"),
        ("https://" + "a" * 63 + ".com", "https://" + "a" * 63 + ".com"),
    ],
)
def test_a_base_url_has_one_canonical_form(text, url):
    assert parse_base_url(text).url == url
    assert parse_base_url(url).url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "ftp://host",
        "https://",
        "https://user:pass@host",
        "https://host/?q=1",
        "https://host/#f",
        "https://host/?",
        "https://host/a/../b",
        "https://host/a//b",
        "https://host:0",
        "https://host:99999",
        "https://ho st",
        "https://host/\r\nx: y",
        "https://host\x00",
        "https://höst",
        "https://-host",
        "https://a..b.com",
        "https://host..",
        "https://" + "a" * 64 + ".com",
        "http://8.8.8.8",
        "http://2130706433",
        "http://127.1",
        "http://0x7f.0.0.1",
        "https://0",
        "https://169.254.169.254/latest",
        "https://[fe80::1]",
        "https://[::ffff:169.254.169.254]",
        "https://[64:ff9b::a9fe:a9fe]",
        "https://[2002:a9fe:a9fe::]",
        "https://[fd00:ec2::254]",
        "https://100.100.100.200",
        "https://0.0.0.0",
        "https://224.0.0.1",
        "https://host/" + "a" * 3000,
    ],
)
def test_a_bad_or_refused_base_url_is_a_clear_failure_without_its_credentials(text):
    with pytest.raises(Failure) as caught:
        parse_base_url(text)
    assert caught.value.code == "engine.setting_invalid"
    assert "pass" not in str(caught.value)


@given(st.integers(0, 2**16 - 1), st.booleans())
def test_no_way_of_writing_a_link_local_address_gets_through(low, is_tls):
    plain = ipaddress.IPv4Address((169 << 24 | 254 << 16) + low)
    for written in (plain, ipaddress.IPv6Address(f"::ffff:{plain}"), ipaddress.IPv6Address(f"64:ff9b::{plain}")):
        assert address_fault(written, is_tls=is_tls)


@given(st.ip_addresses())
def test_what_may_be_reached_in_the_clear_may_be_reached_by_tls(address):
    if not address_fault(address, is_tls=False):
        assert not address_fault(address, is_tls=True)
        assert not address.is_global or address in ipaddress.ip_network("100.64.0.0/10")


@given(st.text(max_size=60))
def test_any_text_is_an_origin_or_a_failure(text):
    try:
        found = parse_base_url(text)
    except Failure:
        return
    assert parse_base_url(found.url) == found


def test_loopback_is_known_by_name_and_by_address():
    def origin(host):
        return Origin(is_tls=False, host=host, port=1)

    assert all(is_loopback(origin(host)) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not is_loopback(origin("10.0.0.1"))
    assert not is_loopback(origin("example"))
