import collections
import dataclasses
import gc
import itertools

import jax
import pytest
from hypothesis import given, settings

from nas.diffusion import unet
from nas.testing.spaces import SpaceLaws, walked, walks
from search_spaces.actions import Choose, Copy, Remove
from search_spaces.blocks import ResNet, Transformer
from search_spaces.ops import output
from search_spaces.program import calls, network
from search_spaces.unet import Layer, UNetSpec, lower
from search_spaces.unet_space import UNetSpace, removable
from tests import tiny


def renamed(spec: UNetSpec) -> UNetSpec:
    """`spec` with every block called otherwise."""

    def stage(old):
        layers = tuple(
            Layer(tuple(dataclasses.replace(b, name=f"other.{b.name}") for b in layer.blocks))
            for layer in old.layers
        )
        return dataclasses.replace(old, layers=layers)

    return dataclasses.replace(
        spec,
        down=tuple(map(stage, spec.down)),
        middle=stage(spec.middle),
        up=tuple(map(stage, spec.up)),
    )


class UNetLaws(SpaceLaws):
    space: UNetSpace  # pyright: ignore[reportIncompatibleVariableOverride]

    @settings(max_examples=20)
    @given(walks)
    def test_names_are_not_part_of_the_architecture(self, walk):
        spec = walked(self.space, walk)
        assert renamed(spec) == spec and hash(renamed(spec)) == hash(spec)
        assert repr(renamed(spec)) != repr(spec)

    @settings(max_examples=20)
    @given(walks)
    def test_names_are_unique(self, walk):
        names = [step.name for step in lower(walked(self.space, walk))]
        assert len(set(names)) == len(names)

    @settings(max_examples=20)
    @given(walks)
    def test_skips_balance(self, walk):
        spec = walked(self.space, walk)
        changes = sum(stage.resample is not None for stage in spec.down)
        pushed = 1 + sum(len(stage.layers) for stage in spec.down) + changes
        assert pushed == sum(len(stage.layers) for stage in spec.up)
        assert changes == sum(stage.resample is not None for stage in spec.up)

    @settings(max_examples=20)
    @given(walks)
    def test_removals_commute(self, walk):
        spec = walked(self.space, walk)
        names = [removal.block for removal in self.space.removals(spec)]
        for first, second in itertools.pairwise(names):
            one, other = tiny.without(spec, first, second), tiny.without(spec, second, first)
            assert repr(one) == repr(other)

    @settings(max_examples=20)
    @given(walks)
    def test_a_block_may_be_removed_if_and_only_if_it_keeps_its_shape(self, walk):
        spec = walked(self.space, walk)
        found = calls(lower(spec), self.space.inputs)
        for block in spec.blocks[:: 1 + len(walk)]:
            call = found[block.name]
            legal = self.space.illegal(spec, Remove(block.name)) is None
            assert legal == (output(call) == call.inputs[0])
            assert legal == (block.name in removable(spec, self.space.inputs))

    @settings(max_examples=20)
    @given(walks)
    def test_removals_leave_what_else_is_removable(self, walk):
        spec = walked(self.space, walk)
        legal = removable(spec, self.space.inputs)
        for block in legal:
            left = removable(Remove(block).apply(spec), self.space.inputs)
            assert left == tuple(name for name in legal if name != block)

    @settings(max_examples=20)
    @given(walks)
    def test_copies_are_made_only_where_a_layer_has_room(self, walk):
        space = dataclasses.replace(self.space, depth=2)
        spec = walked(space, walk)
        for copy in space.copies(spec):
            place = copy.apply(spec).place(copy.name)
            layer = copy.apply(spec).stages[place.stage].layers[place.layer]
            kinds = collections.Counter(type(block.op) for block in layer.blocks)
            assert kinds[type(spec.block(copy.block).op)] <= 2

    def test_every_removable_block_may_be_copied_where_there_is_room(self):
        seed = self.space.seed
        assert {copy.block for copy in self.space.copies(seed)} == {
            removal.block for removal in self.space.removals(seed)
        }

    @pytest.mark.parametrize(
        "action", [Remove("gone"), Copy("gone", "new"), Choose("gone", "ffn", 6)]
    )
    def test_actions_on_unknown_blocks_raise_with_the_blocks_there_are(self, action):
        with pytest.raises(ValueError, match=r"no block gone; .*down_blocks\.0\.resnets\.0"):
            action.apply(self.space.seed)

    @settings(max_examples=20)
    @given(walks)
    def test_copies_have_names_that_are_free(self, walk):
        spec = walked(self.space, walk)
        names = {block.name for block in spec.blocks}
        once = [copy.name for copy in self.space.copies(spec)]
        again = [copy.name for copy in self.space.copies(spec, taken=once)]
        assert not names & {*once, *again} and not {*once} & {*again}


class TestTiny(UNetLaws):
    space = tiny.unet_space(tiny.UNET)


class TestSD15(UNetLaws):
    space = tiny.unet_space(tiny.NARROW_SD15)


@pytest.mark.slow
class TestSDXL(UNetLaws):
    space = tiny.unet_space(tiny.NARROW_SDXL)


def test_the_tiny_unet_has_ten_removable_blocks():
    space = tiny.unet_space(tiny.UNET)
    assert removable(space.seed, space.inputs) == tiny.REMOVABLE


def test_sd15_has_its_published_size_and_34_removable_blocks_and_allocates_nothing():
    gc.collect()  # What other tests left.
    before = len(jax.live_arrays())
    spec = unet.from_config(tiny.SD15)
    shapes = unet.shapes(tiny.SD15, batch=2, tokens=77)
    assert network(lower(spec), shapes).size == 859_520_964
    legal = [spec.block(name).op for name in removable(spec, shapes)]
    assert sum(isinstance(op, Transformer) for op in legal) == 16
    assert sum(isinstance(op, ResNet) for op in legal) == 18 == len(legal) - 16
    assert len(jax.live_arrays()) <= before


def test_sd15_is_balanced_and_an_unbalanced_spec_is_an_error():
    spec = unet.from_config(tiny.NARROW_SD15)
    first = spec.down[0]
    fewer = dataclasses.replace(first, layers=first.layers[:1])
    with pytest.raises(ValueError, match="pushes 11 skips, the up path pops 12"):
        lower(dataclasses.replace(spec, down=(fewer, *spec.down[1:])))


def test_only_the_up_path_has_skips():
    spec = unet.from_config(tiny.UNET)
    (layer,) = spec.down[1].layers
    reading = Layer((dataclasses.replace(layer.blocks[0], reads_skip=True),))
    stage = dataclasses.replace(spec.down[1], layers=(reading,))
    with pytest.raises(ValueError, match=r"down_blocks\.1\.resnets\.0 reads a skip"):
        lower(dataclasses.replace(spec, down=(spec.down[0], stage)))


def test_an_empty_layer_of_the_down_path_pushes_what_reached_it():
    spec = tiny.without(unet.from_config(tiny.UNET), *tiny.REMOVABLE[:2])
    reads = {step.name: step.reads for step in lower(spec)}
    assert reads["up_blocks.1.resnets.0"][1] == "conv_in"
    assert reads["up_blocks.1.resnets.1"][1] == "conv_in"


def test_copies_of_a_copy_are_named_after_the_original():
    spec = unet.from_config(tiny.UNET)
    name = "mid_block.attentions.0"
    spec = tiny.copied(spec, (name, f"{name}+1"))
    (found,) = (c.name for c in tiny.unet_space(tiny.UNET).copies(spec) if c.block == f"{name}+1")
    assert found == f"{name}+2"


def test_a_copy_may_not_take_the_name_of_a_block():
    spec = unet.from_config(tiny.UNET)
    with pytest.raises(ValueError, match=r"has mid_block\.resnets\.0 already"):
        Copy("mid_block.resnets.1", "mid_block.resnets.0").apply(spec)


def test_a_copy_stands_behind_its_original():
    spec = unet.from_config(tiny.UNET)
    copy = tiny.copied(spec, ("mid_block.resnets.0", "new"))
    blocks = [block.name for block in copy.middle.layers[0].blocks]
    assert blocks[:3] == ["mid_block.resnets.0", "new", "mid_block.attentions.0"]
    assert copy.block("new").op == spec.block("mid_block.resnets.0").op


@settings(max_examples=5)
@given(walks)
def test_a_program_may_not_be_fed_other_images(walk):
    space = tiny.unet_space(tiny.UNET)
    spec = walked(space, walk)
    narrow = {**space.inputs, "sample": jax.ShapeDtypeStruct((2, 7, 7, 4), "float32")}
    with pytest.raises((TypeError, ValueError)):
        calls(lower(spec), narrow)
