"""Properties of the pure parts of a request: the splice of the model, nesting, keys, balance, errors."""

import json
import random

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapters.contract import Endpoint
from core.errors import CODES, Failure
from core.ids import KeyId, ReplicaId
from gateway import keys
from gateway.balance import SKIP_S, Balance
from gateway.openai import errors, requests
from gateway.table import KeyEntry, Target
from tests.gateway.conftest import KEY, KID, PEPPER, MovableClock

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON), st.text(), st.text(min_size=1))
def test_only_the_model_changes_in_the_spliced_body(members: dict, old: str, new: str) -> None:
    body = json.dumps({**members, "model": old}).encode()
    assert json.loads(requests.with_model(body, new)) == {**members, "model": new}


def test_the_splice_keeps_every_byte_of_the_other_values() -> None:
    body = b'{"t": 1.50e+0, "model":"a" , "s":"\\u00e9\\/", "big": 123456789012345678901234567890, "l":[ 1 ]}'
    spliced = requests.with_model(body, "b")
    for kept in (b"1.50e+0", b'"\\u00e9\\/"', b"123456789012345678901234567890", b"[ 1 ]"):
        assert kept in spliced


def test_the_last_of_two_models_counts_for_the_door_and_the_engine_alike() -> None:
    body = b'{"model":"a","messages":[{}],"model":"b"}'
    assert requests.asked(Endpoint.CHAT, body).model == "b"
    assert json.loads(requests.with_model(body, "served"))["model"] == "served"


def real_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(real_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(real_depth, value), default=0)
    return 0


@settings(deadline=None)
@given(JSON, st.integers(0, 80), st.integers(0, 80))
def test_nesting_is_exact_where_it_matters(value: object, depth: int, padding: int) -> None:
    for _ in range(depth):
        value = [value]
    text = json.dumps([value, ["[{"] * padding]).encode()
    assert (requests.nesting(text) > requests.MAX_DEPTH) == (real_depth(json.loads(text)) > requests.MAX_DEPTH)


@pytest.mark.parametrize(
    "endpoint, body, param",
    [
        (Endpoint.COMPLETIONS, {"model": "m"}, "prompt"),
        (Endpoint.COMPLETIONS, {"model": "m", "prompt": None}, "prompt"),
        (Endpoint.EMBEDDINGS, {"model": "m"}, "input"),
    ],
)
def test_each_endpoint_wants_its_content(endpoint: Endpoint, body: dict, param: str) -> None:
    with pytest.raises(Failure) as caught:
        requests.asked(endpoint, json.dumps(body).encode())
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", ["hi", ["a", "b"], [1, 2], [[1], [2]], ""])
def test_every_shape_of_prompt_is_accepted(prompt: object) -> None:
    assert requests.asked(Endpoint.COMPLETIONS, json.dumps({"model": "m", "prompt": prompt}).encode()).model == "m"


def json_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_object_are_refused_in_words(body: bytes) -> None:
    assume(not json_object(body))
    with pytest.raises(Failure, match=r".+") as caught:
        requests.asked(Endpoint.CHAT, body)
    assert caught.value.code.startswith("request.")


def test_every_code_of_the_table_is_known_and_every_body_has_four_fields() -> None:
    for code in errors.TABLE:
        assert code in CODES
        error = json.loads(errors.error_body(Failure(code, "x", param="p")))["error"]
        assert set(error) == {"message", "type", "param", "code"}


def test_a_failure_that_the_table_does_not_know_says_nothing() -> None:
    failure = Failure("storage.unavailable", "postgres at 10.0.0.1 is down", param="dsn")
    assert errors.status_of(failure) == 500
    assert b"10.0.0.1" not in errors.error_body(failure)
    assert b"dsn" not in errors.error_body(failure)


@settings(deadline=None)
@given(st.text(), st.integers(400, 599))
def test_any_engine_error_becomes_a_known_failure(text: str, status: int) -> None:
    for body in (text.encode("utf-8", "replace"), msgspec.json.encode({"error": {"message": text, "type": text}})):
        failure = errors.engine_failure(status, body, frozenset(), "m")
        assert failure.code in errors.TABLE
        assert "\n" not in failure.message


def test_an_error_whose_type_is_no_text_is_a_refusal_as_any_other() -> None:
    body = b'{"error": {"message": "odd", "type": ["a"], "code": ["b"]}}'
    assert errors.engine_failure(400, body, frozenset({"a"}), "m").code == "door.engine_refused"


def test_an_error_500_that_blames_the_request_is_a_refusal_and_an_overflow_names_the_field() -> None:
    body = b'{"error": {"message": "Failed to parse tools: no type", "type": "server_error"}}'
    failure = errors.engine_failure(500, body, frozenset(), "m", refusal_phrases=("Failed to parse ",))
    assert (failure.code, errors.status_of(failure)) == ("door.engine_refused", 400)
    assert errors.engine_failure(500, body, frozenset(), "m").code == "door.engine_failed"
    overflow = errors.engine_failure(400, body, frozenset({"server_error"}), "m", content="prompt")
    assert (overflow.code, overflow.param) == ("door.context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    "text",
    [
        "File /usr/lib/x",
        "see https://x.y",
        "127.0.0.1 refused",
        "ValueError exception",
        "ggml.cpp:12",
        "x" * 400,
        "at 0xdeadbeef",
        3,
        None,
    ],
)
def test_an_engines_words_with_inner_details_are_not_shown(text: object) -> None:
    assert errors.refusal_text(text) == ""


def entry(**more: object) -> KeyEntry:
    values = {"kid": KID, "digest": b"", "project": "p", "expires_unix_s": 0, "is_revoked": False}
    return KeyEntry(**{**values, **more})


def test_a_key_with_the_wrong_digest_is_invalid_even_when_revoked() -> None:
    known = {KeyId(KID): entry(digest=bytes(32), is_revoked=True)}
    with pytest.raises(Failure) as caught:
        keys.caller(f"Bearer {KEY}".encode(), known, PEPPER, 0)
    assert caught.value.code == "auth.invalid"


def targets(count: int) -> list[Target]:
    return [
        Target(replica_id=ReplicaId(f"rep_{i}"), incarnation=1, host="127.0.0.1", port=1, engine_key="")
        for i in range(count)
    ]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 60), st.integers())
def test_two_choices_keep_the_load_nearly_even_and_the_counts_right(count: int, taken: int, seed: int) -> None:
    balance = Balance(random.Random(seed), MovableClock())
    chosen = [balance.take(targets(count)) for _ in range(taken)]
    loads = [balance.in_flight().get(target.replica_id, 0) for target in targets(count)]
    assert sum(loads) == taken
    assert max(loads) - min(loads) <= (1 if count <= 2 else taken)
    for target in chosen:
        balance.release(target)
    assert balance.in_flight() == {}


def test_a_replica_that_refused_is_passed_over_for_a_second() -> None:
    clock = MovableClock()
    balance = Balance(random.Random(1), clock)
    two = targets(2)
    balance.refused(two[0])
    assert {balance.take(two).replica_id for _ in range(5)} == {"rep_1"}
    clock.ahead_s = SKIP_S + 0.01
    assert balance.take(two).replica_id == "rep_0"


def test_a_replica_that_refused_is_still_tried_when_it_is_the_only_one() -> None:
    balance = Balance(random.Random(1), MovableClock())
    balance.refused(targets(1)[0])
    assert balance.take(targets(1)) is not None
    assert balance.take(targets(1), frozenset({(ReplicaId("rep_0"), 1)})) is None
