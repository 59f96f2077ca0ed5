import json
import shutil
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nas.checkpoints import Checkpoints
from nas.cli import Interrupted
from nas.places import Place, Remote, place
from tests import drawn


def tree(seed: int):
    return {"a": drawn.normal(seed, 3, 4), "b": (np.arange(3) + seed, np.array(seed, np.float32))}


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def filled_once(tmp_path_factory):
    made = tmp_path_factory.mktemp("remote")
    filled(place(f"file://{made}"))
    return made


@pytest.fixture
def remote(filled_once, tmp_path):
    shutil.copytree(filled_once, tmp_path / "checkpoints")
    return place(f"file://{tmp_path}/checkpoints")


def filled(folder: Place) -> Place:
    saved = Checkpoints(folder)
    for step in (1, 2, 3):
        saved.save(step, tree(step))
    return folder


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


# On other filesystems.


def test_checkpoints_are_in_memory_as_well_as_in_files():
    folder = place(f"memory://{uuid.uuid4().hex}")
    Checkpoints(folder).save(1, tree(1))
    assert same(Checkpoints(folder).latest(tree(0)), tree(1))


def manifests(remote: Remote) -> list[str]:
    return [name for name in remote.names() if name.endswith(".json")]


def first_file(remote: Remote) -> Remote:
    """A file of the newest checkpoint that is not empty."""
    manifest = json.loads((remote / "3.json").read_bytes())
    sent = remote / manifest["under"]
    return next(sent / name for name in manifest["files"] if (sent / name).read_bytes())


def test_the_newest_remote_checkpoint_is_read_to_the_bit(remote):
    assert Checkpoints(remote).newest == 3
    assert same(Checkpoints(remote).latest(tree(0)), tree(3))
    assert Checkpoints(remote / "new").latest(tree(0)) is None


def test_the_newest_few_remote_ones_are_kept_and_nothing_else(remote):
    assert manifests(remote) == ["2.json", "3.json"]
    assert sorted({name.partition("-")[0] for name in remote.names()} - {"2.json", "3.json"}) == [
        "2",
        "3",
    ]


def test_saving_a_remote_step_twice_keeps_the_first(remote):
    Checkpoints(remote).save(3, tree(9))
    assert same(Checkpoints(remote).latest(tree(0)), tree(3))


def test_of_two_who_send_one_step_the_first_is_kept_whole(remote, monkeypatch):
    create = Remote.create

    def beaten(target: Remote, content: bytes) -> None:
        monkeypatch.undo()
        Checkpoints(remote).save(4, tree(4))
        create(target, content)

    monkeypatch.setattr(Remote, "create", beaten)
    Checkpoints(remote).save(4, tree(9))
    assert same(Checkpoints(remote).latest(tree(0)), tree(4))
    assert len([name for name in remote.names() if name.startswith("4")]) == 2


def test_a_remote_checkpoint_is_not_there_before_it_is_whole(remote, monkeypatch):
    def killed(target: Remote, content: bytes) -> None:
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Remote, "create", killed)
        Checkpoints(remote).save(4, tree(4))
    assert same(Checkpoints(remote).latest(tree(0)), tree(3))
    for step in (4, 5, 6):
        Checkpoints(remote).save(step, tree(step))
    left = {name.removesuffix(".json").partition("-")[0] for name in remote.names()}
    assert left == {"5", "6"} and len(remote.names()) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_remote_checkpoint_is_an_error_that_names_the_file(remote, damage):
    file = first_file(remote)
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes({"flipped": flipped, "cut": content[:-1]}[damage])
    told = "missing" if damage == "gone" else rf"{file.name} is damaged"
    with pytest.raises(ValueError, match=rf"cannot read checkpoint .*/3.json: .*{told}"):
        Checkpoints(remote).latest(tree(0))
    (remote / "3.json").unlink()
    assert same(Checkpoints(remote).latest(tree(0)), tree(2))
