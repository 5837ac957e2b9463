"""Recipes: read, checked, hashed, changed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv import recipe
from leanconv.errors import Error
from leanconv.recipe import Data, Model, Recipe, Training


@pytest.mark.parametrize("name", recipe.names())
def test_packaged_recipes_load_and_survive_being_written(name: str) -> None:
    loaded = recipe.load(name)
    again = recipe.parse(recipe.dump(loaded))
    assert again == loaded
    assert again.digest == loaded.digest
    assert hash(again) == hash(loaded)
    assert loaded.technique_options().keys() == loaded.techniques.keys()


def test_the_packaged_recipes_are_these() -> None:
    trained = ("cifar10", "default", "demo", "finetune", "mobilenet", "photos", "small-images", "source")
    assert recipe.names() == (*trained, "study")


@pytest.mark.source("S28")
def test_source_has_the_four_techniques_as_the_text_has_them() -> None:
    options = recipe.load("source").technique_options()
    assert list(options) == ["separable", "batchnorm", "dropout", "l2"]
    assert (options["dropout"].mask, options["dropout"].strict) == ("batch", True)
    l2 = options["l2"]
    assert (l2.form, l2.where, l2.depthwise) == ("lambda/2n", "loss", True)


@pytest.mark.source("S15")
def test_mobilenet_leaves_depthwise_filters_undecayed() -> None:
    assert recipe.load("mobilenet").technique_options()["l2"].depthwise is False


def test_resolved_writes_out_every_option() -> None:
    full = recipe.load("demo").resolved()
    for name, options in full.technique_options().items():
        assert full.techniques[name] == dataclasses.asdict(options)
    assert full.resolved() == full


def test_building_a_recipe_imports_no_torch() -> None:
    code = "import sys; from leanconv import recipe; recipe.Recipe().digest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_can_be_copied_and_pickled_and_does_not_share_its_options() -> None:
    given = {"l2": {"strength": 0.1}}
    made = Recipe(techniques=given)
    given["l2"]["strength"] = 7.0
    assert made.techniques["l2"]["strength"] == 0.1
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made


def test_the_digest_ignores_form_and_knows_content_and_order() -> None:
    one = recipe.parse("training: {epochs: 3, lr: 1}\ntechniques: {l2: {strength: 0.1}, dropout: {p: 0.2}}")
    same = recipe.parse(
        "# a remark\ntechniques:\n  l2: {strength: 0.1}\n  dropout: {p: 0.2}\ntraining: {lr: 1.0, epochs: 3}"
    )
    swapped = recipe.parse("training: {epochs: 3, lr: 1}\ntechniques: {dropout: {p: 0.2}, l2: {strength: 0.1}}")
    other = recipe.parse("training: {epochs: 4, lr: 1}\ntechniques: {l2: {strength: 0.1}, dropout: {p: 0.2}}")
    assert one.digest == same.digest
    assert len({one.digest, swapped.digest, other.digest}) == 3
    assert len(one.digest) == 64


BAD = {
    "epochz: 3": "recipe: keys must be among format_version, model, data, training, techniques, got 'epochz'",
    "training: {epoch: 3}": "did you mean epochs?",
    "training: {epochs: 0}": "training.epochs must be at least 1, got 0",
    "training: {epochs: 2.5}": "training.epochs must be an integer, got 2.5",
    "training: {epochs: true}": "training.epochs must be an integer, got True",
    "training: {batch: -4}": "training.batch must be at least 1, got -4",
    "training: {lr: fast}": "training.lr must be a number, got 'fast'",
    "training: {lr: 0}": "training.lr must be above 0, got 0.0",
    "training: {lr: .nan}": "training.lr must be finite, got nan",
    "training: {momentum: 1.0}": "training.momentum must satisfy 0 <= momentum < 1, got 1.0",
    "training: {momentum: 0}": "training.nesterov needs momentum > 0, got momentum=0.0",
    "training: {optimizer: adam}": "must be one of sgd, adamw, got 'adam' (did you mean adamw?)",
    "training: {precision: 16}": "training.precision must be one of 32-true, bf16-mixed, got 16",
    "training: {schedule: [cosine]}": "training.schedule must be one of cosine, constant",
    "training: {label_smoothing: 1}": "0 <= label_smoothing < 1, got 1.0",
    "training: {warmup: -1}": "training.warmup must be at least 0, got -1.0",
    "training: {seed: -1}": "training.seed must be at least 0, got -1",
    "training: {seed: 9223372036854775808}": "training.seed must be below 2^63",
    "training: {threads: 0}": "training.threads must be at least 1, got 0",
    "training: [1, 2]": "training must be a mapping, got [1, 2]",
    "data: {imgsz: 4}": "data.imgsz must be at least 8, got 4",
    "data: {imgsz: big}": "data.imgsz must be an integer or null, got 'big'",
    "data: {val: 0}": "data.val must satisfy 0 < val < 1, got 0.0",
    "data: {test: 1}": "data.test must satisfy 0 <= test < 1, got 1.0",
    "data: {in_chans: 2}": "data.in_chans must be 1 or 3, got 2",
    "data: {augment: flip_crops}": "did you mean flip_crop?",
    "model: {name: ''}": "model.name must not be empty",
    "model: {name: plain, options: [1]}": "model.options must be a mapping, got [1]",
    "model: {options: {when: {2: 3}}}": "model.options.when: keys must be text, got 2",
    "model: {options: {width: .inf}}": "model.options.width must be finite, got inf",
    "techniques: [dropout]": "techniques must map names to options, got ['dropout']",
    "techniques: {dropout: 0.5}": "techniques.dropout must be a mapping of options, got 0.5",
    "techniques: {dropuot: {}}": "got 'dropuot'",
    "techniques: {l2: {strenght: 3}}": "did you mean strength?",
    "techniques: {l2: {strength: -3}}": "got strength=-3",
    "format_version: 2": "format_version must be 1, got 2",
    "- a": "recipe must be a mapping, got ['a']",
    "just text": "recipe must be a mapping, got 'just text'",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_values_are_told_in_one_sentence(text: str) -> None:
    with pytest.raises(Error) as caught:
        recipe.parse(text, "mine.yaml")
    message = str(caught.value)
    assert BAD[text] in message
    assert message.startswith("mine.yaml: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("training:\n  epochs: 3\n lr: 4", 3),
        ("a: b: c", 1),
        ("model: plain\ndata: [1,", 2),
        ("training:\n  lr: 1\n  lr: 2", 3),
        ("model: !!python/object:os.system {}", 1),
        ("x: {[1]: 2}", 1),
        ("training: *nowhere", 1),
    ],
)
def test_bad_yaml_names_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(Error) as caught:
        recipe.load(file)
    assert str(caught.value).startswith(f"{file}, line {line}: must be YAML, got: ")
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(
        Error, match=r"must be one of cifar10, default, .* or a YAML file, got 'dmeo' \(did you mean demo\?\)"
    ):
        recipe.load("dmeo")
    with pytest.raises(Error, match="or a YAML file"):
        recipe.load(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01\xff")
    with pytest.raises(Error, match="must be a readable text file in UTF-8, got UnicodeDecodeError"):
        recipe.load(tmp_path / "x.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(Error, match="must be YAML, got"):
        recipe.load(tmp_path / "deep.yaml")
    (tmp_path / "control.yaml").write_text("a: \x07")
    with pytest.raises(Error, match="must be YAML, got"):
        recipe.load(tmp_path / "control.yaml")


def test_an_empty_file_is_the_recipe_of_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert recipe.load(tmp_path / "empty.yaml") == Recipe()


def test_numbers_and_booleans_are_those_of_yaml_1_2() -> None:
    options = recipe.parse(
        "model: {options: {a: 1e-3, b: no, c: 010, d: 0x10, e: 1_000, f: 12:30, g: True, h: ~, i: -.5}}"
    )
    assert options.model.options == {
        "a": 1e-3, "b": "no", "c": 10.0, "d": "0x10", "e": "1_000", "f": "12:30", "g": True, "h": None, "i": -0.5,
    }  # fmt: skip


def test_override_dotted_bare_and_as_text() -> None:
    before = recipe.load("demo")
    after = recipe.override(
        before,
        epochs=3,
        imgsz="32",
        model="mobilenet_v1",
        momentum=None,
        **{"training.lr": "1e-3", "model.options.width": "0.5", "techniques.dropout.p": "0.4", "techniques.l2": False},
    )
    assert (after.training.epochs, after.data.imgsz, after.model.name) == (3, 32, "mobilenet_v1")
    assert (after.training.lr, after.model.options) == (1e-3, {"width": 0.5})
    assert after.training.momentum == before.training.momentum
    assert after.techniques["dropout"]["p"] == 0.4
    assert "l2" not in after.techniques
    assert before == recipe.load("demo")


def test_a_technique_that_is_added_stands_where_it_acts() -> None:
    bare = Recipe(techniques={"separable": {}, "dropout": {}, "l2": {}})
    assert list(recipe.override(bare, **{"techniques.batchnorm": True}).techniques) == [
        "separable", "batchnorm", "dropout", "l2",
    ]  # fmt: skip
    with_p = recipe.override(Recipe(techniques={"l2": {}}), **{"techniques.dropout.p": 0.1})
    assert list(with_p.techniques.items()) == [("dropout", {"p": 0.1}), ("l2", {})]
    kept = recipe.override(Recipe(techniques={"dropout": {"p": 0.1}}), **{"techniques.dropout": "true"})
    assert kept.techniques == {"dropout": {"p": 0.1}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epoch": 3}, "did you mean epochs?"),
        ({"training.epoch": 3}, "did you mean epochs?"),
        ({"trainings.epochs": 3}, "did you mean training?"),
        ({"epochs": "many"}, "training.epochs must be an integer, got 'many'"),
        ({"epochs": "[1"}, "training.epochs, line 1: must be YAML"),
        ({"techniques.dropout.p": 1.5}, "p=1.5"),
        ({"techniques.dropot": True}, "got 'dropot'"),
        ({"training.lr.deep": 1}, "training.lr.deep: lr must have fields, got 0.05"),
    ],
)
def test_bad_overrides(flags: dict[str, object], message: str) -> None:
    with pytest.raises(Error) as caught:
        recipe.override(recipe.load("demo"), **flags)
    assert message in str(caught.value)


def test_only_keeps_some_techniques_in_the_recipes_order() -> None:
    demo = recipe.load("demo")
    assert list(recipe.only(demo, ["l2", "separable"]).techniques) == ["separable", "l2"]
    assert recipe.only(demo, []).techniques == {}
    with pytest.raises(Error, match="techniques: keys must be among"):
        recipe.only(demo, ["nothing"])


def test_sections_must_be_sections() -> None:
    with pytest.raises(Error, match="recipe: model must be a Model, got 'plain'"):
        Recipe(model="plain")  # type: ignore[arg-type]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
    | st.sampled_from(["1e-3", "no", "on", "0x1", "010", "1_0", "~", "null", "12:30", "<<", "=", "2020-01-01", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    options=st.dictionaries(TEXT, PLAIN, max_size=4),
    epochs=st.integers(1, 10**6),
    lr=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**63 - 1),
    imgsz=st.none() | st.integers(8, 512),
)
def test_every_recipe_survives_yaml(
    options: dict[str, object], epochs: int, lr: float, seed: int, imgsz: int | None
) -> None:
    made = Recipe(Model("plain", options), Data(imgsz=imgsz), Training(epochs=epochs, lr=lr, seed=seed))
    again = recipe.parse(recipe.dump(made))
    assert again == made
    assert again.digest == made.digest
