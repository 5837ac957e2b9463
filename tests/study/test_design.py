"""The arms of a study."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanconv import recipe
from leanconv.errors import Error
from leanconv.study.design import NOISE, Factor, design

WHOLE = recipe.load("demo")
NAMES = set(WHOLE.techniques)


def test_factorial_has_every_combination_once_and_the_plain_network_first() -> None:
    made = design(WHOLE, "factorial")
    sets = [frozenset(arm.recipe.techniques) for arm in made.arms]
    assert len(sets) == len(set(sets)) == 2 ** len(NAMES)
    assert sets[0] == frozenset()
    assert sets[-1] == NAMES
    assert (made.arms[0].name, made.arms[-1].name) == ("plain", "all")
    for arm in made.arms:
        assert {name for name, level in arm.levels.items() if level == "on"} == set(arm.recipe.techniques)
        assert all(arm.recipe.techniques[n] == WHOLE.techniques[n] for n in arm.recipe.techniques)


def test_fewer_arms() -> None:
    assert [a.name for a in design(WHOLE, "add-one").arms] == ["plain", *WHOLE.techniques, "all"]
    left = design(WHOLE, "leave-one-out").arms
    assert len(left) == len(NAMES) + 2
    assert {frozenset(NAMES - set(a.recipe.techniques)) for a in left[1:-1]} == {frozenset({n}) for n in NAMES}


@pytest.mark.source("S24")
def test_side_arms_show_noise_and_width() -> None:
    made = design(WHOLE, "add-one")
    noise = [a for a in made.sides if a.role == "noise"]
    assert [a.like for a in noise] == ["plain", *WHOLE.techniques]
    assert all(a.recipe.data.label_noise == NOISE for a in noise)
    width = WHOLE.model.options["width"]
    wide = [a for a in made.sides if a.role == "width"]
    assert [a.recipe.model.options["width"] for a in wide] == [width // 2, width * 2]
    assert design(WHOLE, "add-one", sides=False).sides == ()


def test_a_recipe_with_wrong_labels_or_without_a_width_has_fewer_side_arms() -> None:
    noisy = recipe.override(WHOLE, label_noise=0.1)
    assert {a.role for a in design(noisy).sides} == {"width"}
    other = recipe.override(WHOLE, model="mlp")
    assert {a.role for a in design(other).sides} == {"noise"}


def test_options_are_factors_with_levels(tmp_path: Path) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text("factors: {batchnorm: [false, true], techniques.dropout.p: [0.1, 0.5], training.lr: [0.1, 0.2]}\n")
    made = design(recipe.only(WHOLE, ["batchnorm", "dropout"]), str(file))
    assert len(made.arms) == 8
    top = made.arm("all").recipe
    assert (top.techniques["dropout"]["p"], top.training.lr, "batchnorm" in top.techniques) == (0.5, 0.2, True)
    one = made.arm("dropout.p=0.5").recipe
    assert (one.techniques["dropout"]["p"], one.training.lr, "batchnorm" in one.techniques) == (0.5, 0.1, False)


def test_an_option_of_a_technique_that_is_off_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(
        "factors: {dropout: [false, true], techniques.dropout.p: [0.1, 0.5]}\n"
        "arms: [{}, {dropout: true}, {dropout: true, techniques.dropout.p: 0.5}]\n"
    )
    arms = design(WHOLE, str(file), sides=False).arms
    assert [a.recipe.techniques.get("dropout", {}).get("p") for a in arms] == [None, 0.1, 0.5]


def test_a_technique_that_the_recipe_does_not_have_can_be_a_factor(tmp_path: Path) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text("factors: {l2: [false, {strength: 0.01, form: lambda/2}]}\n")
    arms = design(recipe.only(WHOLE, []), str(file), sides=False).arms
    assert [arm.recipe.techniques for arm in arms] == [{}, {"l2": {"strength": 0.01, "form": "lambda/2"}}]


def test_short_names() -> None:
    assert [Factor(n, {}).short for n in ("l2", "techniques.dropout.p", "model.options.width", "training.lr")] == [
        "l2",
        "dropout.p",
        "width",
        "lr",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("factors: {}", "factors must map names to their levels"),
        ("factors: {dropuot: [false, true]}", "did you mean dropout"),
        ("factors: {dropout: true}", "factors.dropout must be a list"),
        ("factors: {dropout: [true]}", "at least two levels"),
        ("factors: {dropout: [true, true]}", "must have a level once"),
        ("factors: {dropout: [false, true]}\narms: [{dropout: 3}]", "arms.dropout must be one of off, on"),
        ("factors: {dropout: [false, true]}\narms: [{l2: true}]", "keys must be among dropout"),
        ("factors: {dropout: [false, true]}\narms: [{dropout: true}, {dropout: true}]", "got dropout twice"),
        ("factors: {dropout: [false, true]}\narms: halves", "arms must be factorial"),
        ("factors: {dropout: [false, true]}\narms: [{}]", "2 to 512 arms, got 1"),
        ("factors: {techniques.dropout.p: [0.1, 7]}", "p"),
        ("arm: 1", "did you mean arms"),
        ("format_version: 9\nfactors: {dropout: [false, true]}", "format_version must be 1"),
        ("- 1", "study must be a mapping"),
        ("a: [", "must be YAML"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(text)
    with pytest.raises(Error) as caught:
        design(WHOLE, str(file))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_design_and_nothing_to_compare() -> None:
    with pytest.raises(Error, match="did you mean factorial"):
        design(WHOLE, "factoral")
    with pytest.raises(Error, match="must have techniques to compare"):
        design(recipe.only(WHOLE, []))
