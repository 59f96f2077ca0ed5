import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nas.checkpoints import Checkpoints
from nas.cli import Interrupted
from tests import drawn


def tree(seed: int):
    return {"a": drawn.normal(seed, 3, 4), "b": (np.arange(3) + seed, np.array(seed, np.float32))}


@pytest.fixture
def folder(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        saved.save(step, tree(step))
    return tmp_path / "checkpoints"


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "new").latest(tree(0)) is None


def test_the_newest_checkpoint_is_read_to_the_bit(folder):
    found = Checkpoints(folder).latest(tree(0))
    assert same(found, tree(3))
    assert jax.tree.structure(found) == jax.tree.structure(tree(0))


def test_what_is_read_is_tied_to_no_device(folder):
    """JAX compiles a function again for every pattern of tied and free arguments."""
    found = Checkpoints(folder).latest({**tree(0), "a": jnp.zeros((3, 4))})
    assert found is not None
    assert isinstance(found["a"], jax.Array) and not found["a"].committed


def test_the_newest_few_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["2", "3"]


def test_saving_a_step_twice_keeps_the_first(folder):
    saved = Checkpoints(folder)
    saved.save(3, tree(9))
    assert same(Checkpoints(folder).latest(tree(0)), tree(3))


def test_saving_goes_on_after_a_restart(folder):
    saved = Checkpoints(folder)
    saved.save(4, tree(4))
    assert same(saved.latest(tree(0)), tree(4))


def damage(folder, how):
    files = [path for path in (folder / "3").rglob("*") if path.is_file()]
    for path in sorted(files):
        how(path)


@pytest.mark.parametrize(
    "how",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    ],
    ids=["truncated", "emptied", "unlinked", "overwritten"],
)
def test_a_damaged_checkpoint_is_an_error_that_names_its_folder(folder, how):
    damage(folder, how)
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*/checkpoints/3: .*delete"):
        Checkpoints(folder).latest(tree(0))


def test_an_interruption_is_not_taken_for_damage(folder, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted

    monkeypatch.setattr(ocp.CheckpointManager, "restore", interrupted)
    with pytest.raises(Interrupted):
        Checkpoints(folder).latest(tree(0))


def test_the_newest_is_the_last_that_was_saved(folder, tmp_path):
    assert Checkpoints(folder).newest == 3 and Checkpoints(tmp_path / "none").newest is None


def test_deleting_the_damaged_checkpoint_goes_on_from_the_one_before(folder):
    damage(folder, lambda path: path.unlink())
    (folder / "3").rename(folder.parent / "gone")
    assert same(Checkpoints(folder).latest(tree(0)), tree(2))


@pytest.mark.parametrize(
    "like",
    [
        {"a": np.zeros((3, 4))},
        {**tree(0), "c": np.zeros(1)},
        {**tree(0), "a": np.zeros((4, 4))},
        {**tree(0), "a": jnp.zeros((4, 4))},
        {**tree(0), "a": jnp.zeros((2, 4))},
    ],
    ids=["fewer", "more", "larger", "larger on the device", "smaller on the device"],
)
def test_a_checkpoint_of_another_tree_is_an_error(folder, like):
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        Checkpoints(folder).latest(like)
