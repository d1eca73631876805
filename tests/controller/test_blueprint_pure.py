"""Blueprints without a database: what a file says, what is wrong with one and where, and what has to change."""

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.blueprint import reading, writing
from controller.blueprint.changes import changes
from controller.blueprint.model import Action, Alias, Blueprint, Deployment, Kind, Model, Version, Way
from controller.blueprint.service import pinned
from core.errors import Failure
from core.states import Stage

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
WHOLE = f"""\
format: 1
models:
- name: m
  versions:
  - number: 1
    source: hf:org/m@main
    digest: {DIGEST}
    stage: production
aliases:
- name: chat
  model: m@v1
deployments:
- name: m
  model: m@v1
  engine: llamacpp
  engine_version: '1.0'
  replicas: 2
  requires: [tools]
  settings:
    context: 8192
    embeddings: false
  is_enabled: false
  disabled_answer: not_found
  runtime: container
  image: ghcr.io/x/y@sha256:1
  node: box
  secret: token
"""


def test_a_file_is_read_as_it_stands() -> None:
    assert reading.blueprint(WHOLE) == Blueprint(
        models=(
            Model(
                name="m",
                versions=(Version(number=1, source="hf:org/m@main", digest=DIGEST, stage=Stage.PRODUCTION),),
            ),
        ),
        aliases=(Alias(name="chat", model="m", number=1),),
        deployments=(
            Deployment(
                name="m",
                model="m",
                number=1,
                engine="llamacpp",
                engine_version="1.0",
                replicas=2,
                settings={"context": 8192, "embeddings": False},
                requires=("tools",),
                is_enabled=False,
                disabled_answer="not_found",
                runtime="container",
                image="ghcr.io/x/y@sha256:1",
                node="box",
                secret="token",
            ),
        ),
    )


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", "request.invalid_field", "line 1: the file is empty"),
        ("- a", "request.invalid_field", "line 1: the file must be a mapping of keys to values"),
        ("models: {}", "request.invalid_field", "line 1: models must be a list"),
        ("modls: []", "request.unknown_field", "unknown key 'modls' at line 1; did you mean 'models'?"),
        (
            "deployments:\n- name: m\n  model: m\n  replica: 2",
            "request.unknown_field",
            "unknown key 'replica' at line 4; did you mean 'replicas'?",
        ),
        ("deployments:\n- name: m\n  zzz: m", "request.unknown_field", "unknown key 'zzz' at line 3"),
        ("deployments:\n- model: m", "request.invalid_field", "line 2: a deployment lacks the key 'name'"),
        ("deployments:\n- name: m\n  model: m\n  replicas: '2'", "request.invalid_field", "line 4: replicas must be"),
        ("deployments:\n- name: m\n  model: m\n  replicas: yes", "request.invalid_field", "line 4: replicas must be"),
        ("deployments:\n- name: m\n  model: m\n  replicas: -1", "request.out_of_range", "line 4: replicas must be"),
        (
            "deployments:\n- name: m\n  model: m\n  engine_version: 0.3",
            "request.invalid_field",
            "line 4: engine_version",
        ),
        ("deployments:\n- name: m\n  model: m@vx", "request.invalid_name", "line 3: 'm@vx' names no version"),
        ("deployments:\n- name: A b\n  model: m", "request.invalid_name", "line 2: 'A b' cannot name a deployment"),
        ("deployments:\n- name: m\n  model: m\n- name: m\n  model: m", "request.invalid_field", "line 4: 'm' stands"),
        ("deployments:\n- name: m\n  name: m\n  model: m", "request.invalid_field", "line 3: the key 'name' stands"),
        (
            "deployments:\n- name: m\n  model: m\n  settings: {a: [1]}",
            "request.invalid_field",
            "line 4: the setting 'a'",
        ),
        (
            "deployments:\n- name: m\n  model: m\n  settings: {a: 2020-01-01}",
            "request.invalid_field",
            "line 4: the sett",
        ),
        ("models:\n- name: m\n  versions:\n  - source: ftp:x", "source.unsupported", "line 4: 'ftp:x' names no known"),
        (
            "models:\n- name: m\n  versions:\n  - source: hf:a/b\n    stage: produktion",
            "request.invalid_field",
            "line 5: stage cannot be 'produktion'. Did you mean 'production'?",
        ),
        (
            "models:\n- name: m\n  versions:\n  - source: hf:a/b\n    approve_template: ab",
            "request.invalid_field",
            "line 5: approve_template must be 64",
        ),
        ("a: &x [1]\nmodels: *x", "request.invalid_field", "line 2: references"),
        ("models: [[[[[[[[[[[", "request.invalid_field", "line 1: the file is nested too deeply"),
        ("models: [" * 5000, "request.invalid_field", "line 1"),
        ("models: ]", "request.invalid_field", "line 1: this is not YAML"),
        ("a: b: c", "request.invalid_field", "line 1: this is not YAML"),
        ('models: "\\0"', "request.invalid_field", "line 1"),
        ("models: \x00", "request.invalid_field", "line 1"),
        ("format: 2", "request.invalid_field", "line 1: this file is of a newer form"),
        ("? [a]\n: b", "request.invalid_field", "line 1: a key must be"),
        ("--- {}\n--- {}", "request.invalid_field", "line 2: this is not YAML"),
        ("!!python/object/apply:os.system ['true']", "request.invalid_field", "line 1: the file must be a mapping"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_fault_is_told_with_its_line(text: str, code: str, message: str) -> None:
    with pytest.raises(Failure) as caught:
        reading.blueprint(text)
    assert (caught.value.code, caught.value.message[: len(message)]) == (code, message)


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_is_more_than_a_fault(text: str) -> None:
    with contextlib.suppress(Failure):
        reading.blueprint(text)


NAMES = st.sampled_from(["a", "b", "c-d", "e.f"])
DIGESTS = st.integers(1, 6).map(lambda number: f"sha256:{number:064x}")


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    models = []
    for name in draw(st.lists(NAMES, unique=True, min_size=1)):
        digests = draw(st.lists(DIGESTS, unique=True, min_size=1, max_size=3))
        stages = [draw(st.sampled_from(list(Stage))) for _ in digests]
        models.append(
            Model(
                name=name,
                versions=tuple(
                    Version(
                        number=number,
                        source=f"file:/{digest[-3:]}.gguf",
                        digest=digest,
                        stage=stage,
                        approve_template=draw(st.sampled_from(["", "e" * 64])),
                    )
                    for number, (digest, stage) in enumerate(zip(digests, stages, strict=True), start=1)
                ),
            )
        )
    versions = st.sampled_from([(model.name, version.number) for model in models for version in model.versions])
    aliases = []
    for name in draw(st.lists(st.sampled_from(["x", "y", "z"]), unique=True)):
        model, number = draw(versions)
        aliases.append(Alias(name=name, model=model, number=draw(st.sampled_from([None, number]))))
    deployments = []
    for name in draw(st.lists(NAMES, unique=True)):
        model, number = draw(versions)
        deployments.append(
            Deployment(
                name=name,
                model=model,
                number=number,
                engine="llamacpp",
                engine_version="1",
                replicas=draw(st.integers(0, 3)),
                settings=draw(st.dictionaries(st.sampled_from(["p", "q"]), st.integers(0, 2) | st.booleans())),
                requires=tuple(draw(st.lists(st.sampled_from(["tools", "seed"]), max_size=4))),
                is_enabled=draw(st.booleans()),
                disabled_answer=draw(st.sampled_from(["not_found", "unavailable"])),
                runtime=draw(st.sampled_from([None, "external", "container"])),
                image=draw(st.sampled_from([None, "i@sha256:1"])),
                node=draw(st.sampled_from([None, "box"])),
                secret=draw(st.sampled_from([None, "s"])),
            )
        )
    return Blueprint(models=tuple(models), aliases=tuple(aliases), deployments=tuple(deployments))


@given(blueprints())
def test_what_is_written_is_read_back_the_same(blueprint: Blueprint) -> None:
    assert reading.blueprint(writing.text(blueprint)) == blueprint
    assert writing.text(blueprint) == writing.text(reading.blueprint(writing.text(blueprint)))


@given(blueprints(), st.booleans())
def test_a_cluster_that_is_so_already_needs_no_change(blueprint: Blueprint, prune: bool) -> None:
    assert changes(blueprint, blueprint, prune=prune) == ()


@given(blueprints(), blueprints())
def test_every_change_names_what_differs_and_nothing_is_deleted_without_prune(
    wanted: Blueprint, now: Blueprint
) -> None:
    for change in changes(wanted, now):
        assert change.action is not Action.DELETE
        assert change.fields
        assert all(one.before != one.after or type(one.before) is not type(one.after) for one in change.fields)


@given(blueprints(), blueprints())
def test_prune_waits_until_nothing_waits_for_a_pull(wanted: Blueprint, now: Blueprint) -> None:
    found = changes(wanted, now, prune=True)
    assert not (any(one.is_waiting for one in found) and any(one.action is Action.DELETE for one in found))


@given(blueprints())
def test_an_empty_section_prunes_all_of_its_kind_and_an_absent_one_none(now: Blueprint) -> None:
    gone = changes(Blueprint(deployments=()), now, prune=True)
    assert {one.name for one in gone} == {one.name for one in now.deployments or ()}
    assert all((one.action, one.kind) == (Action.DELETE, Kind.DEPLOYMENT) for one in gone)
    assert changes(Blueprint(), now, prune=True) == ()


HERE = Blueprint(
    models=(
        Model(
            name="m",
            versions=(
                Version(number=3, source="file:/a.gguf", digest=DIGEST, stage=Stage.CANDIDATE),
                Version(number=4, source="file:/b.gguf", digest=OTHER, stage=Stage.STAGING),
            ),
        ),
    ),
    aliases=(Alias(name="chat", model="m", number=3),),
    deployments=(Deployment(name="m", model="m", number=3, engine="llamacpp", engine_version="1"),),
)


def only(wanted: Blueprint, here: Blueprint = HERE, **more: Any) -> Any:
    (found,) = changes(wanted, here, **more)
    return found


def test_a_version_is_known_by_its_content_whatever_its_number_is_elsewhere() -> None:
    listed = (Model(name="m", versions=(Version(number=1, source="x", digest=OTHER),)),)
    wanted = Blueprint(models=listed, deployments=(Deployment(name="m", model="m", number=1),))
    change = only(wanted)
    assert [(one.name, one.before, one.after) for one in change.fields] == [("version", 3, 4)]


def test_content_that_is_here_under_another_name_is_no_pull() -> None:
    def way(**fields: Any) -> tuple[Way | None, bool]:
        change = only(Blueprint(models=(Model(name="n", versions=(Version(number=1, **fields),)),)))
        return change.way, change.is_waiting

    assert way(source="file:/a.gguf", digest=DIGEST) == (Way.COPY, False)
    assert way(source="builtin:fake", digest="builtin:fake") == (Way.BUILTIN, False)
    assert way(source="file:/c.gguf") == (Way.PULL, True)


def test_a_version_is_not_made_before_an_earlier_one_that_waits() -> None:
    listed = (
        Version(number=1, source="file:/c.gguf"),
        Version(number=2, source="file:/a.gguf", digest=DIGEST),
    )
    found = changes(Blueprint(models=(Model(name="n", versions=listed),)), HERE)
    assert [(change.way, change.is_waiting) for change in found] == [(Way.PULL, True), (Way.COPY, True)]


def test_what_needs_a_missing_version_waits() -> None:
    listed = (Model(name="n", versions=(Version(number=1, source="file:/c.gguf"),)),)
    wanted = Blueprint(
        models=listed,
        aliases=(Alias(name="new", model="n", number=1), Alias(name="chat", model="m", number=4)),
        deployments=(Deployment(name="n", model="n"),),
    )
    assert {change.name: change.is_waiting for change in changes(wanted, HERE)} == {
        "n@v1": True,
        "new": True,
        "n": True,
        "chat": False,
    }


def test_settings_are_compared_one_by_one() -> None:
    here = dataclasses.replace(
        HERE,
        deployments=(Deployment(name="m", model="m", number=3, settings={"context": 1, "old": True, "same": 2}),),
    )
    wanted = Blueprint(deployments=(Deployment(name="m", model="m", settings={"context": 2, "new": 1, "same": 2}),))
    assert [(one.name, one.before, one.after) for one in only(wanted, here).fields] == [
        ("settings.context", 1, 2),
        ("settings.new", None, 1),
        ("settings.old", True, None),
    ]


def test_what_an_adopted_engine_brought_is_in_no_file_and_never_pruned() -> None:
    adopted = Version(number=7, source="adopted:box/llama3:8b", digest="builtin:x", stage=Stage.CANDIDATE)
    models = (
        Model(name="llama3", versions=(adopted,)),
        Model(name="m", versions=(Version(number=1, source="file:/a.gguf", digest=DIGEST), adopted)),
    )
    here = Blueprint(
        models=models,
        aliases=(Alias(name="chat", model="llama3"), Alias(name="old", model="m", number=7)),
        deployments=(Deployment(name="llama3", model="llama3", number=7, engine="ollama"),),
    )
    text = writing.text(here)
    assert "adopted" not in text
    assert changes(reading.blueprint(text), here, prune=True) == ()
    assert changes(Blueprint(models=()), Blueprint(models=models[:1]), prune=True) == ()


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (Blueprint(deployments=(Deployment(name="x", model="mm", line=7),)), "registry.model_not_found"),
        (Blueprint(deployments=(Deployment(name="x", model="m", number=9, line=7),)), "registry.version_not_found"),
        (Blueprint(aliases=(Alias(name="x", model="m", number=9, line=7),)), "registry.version_not_found"),
        (
            Blueprint(
                models=(Model(name="m", versions=(Version(number=1, source="x", digest=DIGEST),)),),
                aliases=(Alias(name="x", model="m", number=3, line=7),),
            ),
            "registry.version_not_found",
        ),
    ],
)
def test_what_is_neither_in_the_file_nor_here_is_refused_with_its_line(wanted: Blueprint, code: str) -> None:
    with pytest.raises(Failure) as caught:
        changes(wanted, HERE)
    assert caught.value.code == code
    assert caught.value.message.startswith("line 7: ")


@pytest.mark.parametrize(
    ("source", "digest", "expected"),
    [
        ("file:/a.gguf", DIGEST, "file:/a.gguf#file=" + "a" * 64),
        ("file:/a.gguf#file=" + "b" * 64, DIGEST, "file:/a.gguf#file=" + "b" * 64),
        ("hf:org/m@" + "c" * 40, DIGEST, "hf:org/m@" + "c" * 40),
        ("file:/a.gguf", "", "file:/a.gguf"),
        ("file:/a-00001-of-00002.gguf", DIGEST, "file:/a-00001-of-00002.gguf"),
        ("hf:org/m:q/A-00001-of-00002.GGUF", DIGEST, "hf:org/m:q/A-00001-of-00002.GGUF"),
        ("hf:org/m:a.gguf", DIGEST, "hf:org/m:a.gguf#file=" + "a" * 64),
        ("hf:org/Model.gguf", DIGEST, "hf:org/Model.gguf"),
        ("ollama:demo.gguf", DIGEST, "ollama:demo.gguf"),
    ],
)
def test_a_pull_is_pinned_by_the_files_digest(source: str, digest: str, expected: str) -> None:
    assert pinned(Version(number=1, source=source, digest=digest)) == expected


def test_a_name_is_a_models_or_an_aliass_not_both() -> None:
    text = "models:\n- name: m\n  versions: [{source: 'file:/m.gguf'}]\naliases:\n- {name: m, model: n}\n"
    with pytest.raises(Failure, match="line 5: 'm' is the name of a model too") as caught:
        reading.blueprint(text)
    assert caught.value.code == "request.invalid_field"
