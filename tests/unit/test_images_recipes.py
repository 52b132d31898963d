"""What can be built, and what is said of what cannot."""

from __future__ import annotations

import pytest

from bough.errors import NotFound
from bough.images.recipes import LABELS, SCRIPTS, recipe_for


@pytest.mark.parametrize("label", LABELS)
def test_every_label_has_a_recipe(label: str) -> None:
    recipe = recipe_for(label, "x86_64")
    assert recipe.label == label
    assert len(recipe.digest()) == 64
    assert recipe.digest() == recipe_for(label, "x86_64").digest()


def test_recipes_differ() -> None:
    assert len({recipe_for(label, "x86_64").digest() for label in LABELS}) == len(LABELS)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(NotFound) as caught:
        recipe_for("debain:12", "x86_64")
    assert caught.value.hint == "did you mean 'debian:12'?"


def test_an_unknown_architecture_is_told() -> None:
    with pytest.raises(NotFound, match="m68k"):
        recipe_for("debian:12", "m68k")


def test_no_mirror_is_named() -> None:
    for path in SCRIPTS.rglob("*"):
        if path.is_file():
            assert "http" not in path.read_text(), path
