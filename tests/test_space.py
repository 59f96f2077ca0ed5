import collections
import dataclasses
import itertools

import jax
import pytest
from hypothesis import given, settings

from nas.diffusion import unet
from search_spaces.blocks import ResNet, Transformer
from search_spaces.ops import output
from search_spaces.program import calls, network
from search_spaces.unet import Copy, Layer, Remove, UNetSpace, UNetSpec, lower, removable
from tests import tiny
from tests.laws import SpaceLaws, walked, walks


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

    @given(walks)
    def test_names_are_not_part_of_the_architecture(self, walk):
        spec = walked(self.space, walk)
        assert renamed(spec) == spec and hash(renamed(spec)) == hash(spec)
        assert repr(renamed(spec)) != repr(spec)

    @given(walks)
    def test_names_are_unique(self, walk):
        names = [step.name for step in lower(walked(self.space, walk))]
        assert len(set(names)) == len(names)

    @given(walks)
    def test_edits_keep_the_number_of_skips(self, walk):
        spec = walked(self.space, walk)
        for ours, seeds in zip(spec.stages, self.space.seed.stages, strict=True):
            assert len(ours.layers) == len(seeds.layers) and ours.resample == seeds.resample

    @given(walks)
    def test_removing_a_fresh_copy_undoes_it(self, walk):
        spec = walked(self.space, walk)
        for copy in self.space.copies(spec):
            undone = Remove(copy.name).apply(copy.apply(spec))
            assert repr(undone) == repr(spec)

    @given(walks)
    def test_removals_commute(self, walk):
        spec = walked(self.space, walk)
        names = [removal.block for removal in self.space.removals(spec)]
        for first, second in itertools.pairwise(names):
            one, other = tiny.without(spec, first, second), tiny.without(spec, second, first)
            assert repr(one) == repr(other)

    @given(walks)
    def test_removable_is_what_keeps_its_shape(self, walk):
        spec = walked(self.space, walk)
        found = calls(lower(spec), self.space.inputs)
        legal = {removal.block for removal in self.space.removals(spec)}
        for block in spec.blocks:
            call = found[block.name]
            assert (block.name in legal) == (output(call) == call.inputs[0])

    @given(walks)
    def test_removals_leave_what_else_is_removable(self, walk):
        spec = walked(self.space, walk)
        legal = removable(spec, self.space.inputs)
        for block in legal:
            left = removable(Remove(block).apply(spec), self.space.inputs)
            assert left == tuple(name for name in legal if name != block)

    @given(walks)
    def test_a_layer_holds_at_most_depth_blocks_of_a_kind(self, walk):
        space = dataclasses.replace(self.space, depth=2)
        spec = walked(space, walk)
        for stage in spec.stages:
            for layer in stage.layers:
                kinds = collections.Counter(type(block.op) for block in layer.blocks)
                assert not kinds or max(kinds.values()) <= 2

    def test_every_removable_block_may_be_copied_where_there_is_room(self):
        seed = self.space.seed
        assert {copy.block for copy in self.space.copies(seed)} == {
            removal.block for removal in self.space.removals(seed)
        }

    @pytest.mark.parametrize("action", [Remove("gone"), Copy("gone", "new")])
    def test_actions_on_unknown_blocks_raise_with_the_blocks_there_are(self, action):
        with pytest.raises(ValueError, match=r"no block gone; .*down_blocks\.0\.resnets\.0"):
            action.apply(self.space.seed)

    @given(walks)
    def test_copies_have_names_that_are_free(self, walk):
        spec = walked(self.space, walk)
        names = {block.name for block in spec.blocks}
        once = [copy.name for copy in self.space.copies(spec)]
        again = [copy.name for copy in self.space.copies(spec, taken=once)]
        assert not names & {*once, *again} and not {*once} & {*again}


def laws_of(config) -> tuple[UNetSpace, dict[str, jax.ShapeDtypeStruct]]:
    space = tiny.unet_space(config)
    return space, dict(space.inputs)


class TestTiny(UNetLaws):
    space, inputs = laws_of(tiny.UNET)


class TestSD15(UNetLaws):
    space, inputs = laws_of(tiny.NARROW_SD15)


class TestSD21(UNetLaws):
    space, inputs = laws_of(tiny.NARROW_SD21)


def test_the_tiny_unet_has_ten_removable_blocks():
    space = tiny.unet_space(tiny.UNET)
    assert removable(space.seed, space.inputs) == tiny.REMOVABLE


def test_sd15_has_its_published_size_and_34_removable_blocks_and_allocates_nothing():
    before = len(jax.live_arrays())
    spec = unet.from_config(tiny.SD15)
    shapes = unet.shapes(tiny.SD15, batch=2, tokens=77)
    assert network(lower(spec), shapes).size == 859_520_964
    legal = [spec.block(name).op for name in removable(spec, shapes)]
    assert sum(isinstance(op, Transformer) for op in legal) == 16
    assert sum(isinstance(op, ResNet) for op in legal) == 18 == len(legal) - 16
    assert len(jax.live_arrays()) == before


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
    with pytest.raises(ValueError, match=r"has a block mid_block\.resnets\.0 already"):
        Copy("mid_block.resnets.1", "mid_block.resnets.0").apply(spec)


def test_a_copy_stands_behind_its_original():
    spec = unet.from_config(tiny.UNET)
    copy = tiny.copied(spec, ("mid_block.resnets.0", "new"))
    blocks = [block.name for block in copy.middle.layers[0].blocks]
    assert blocks == ["mid_block.resnets.0", "new", "mid_block.attentions.0"]
    assert copy.block("new").op == spec.block("mid_block.resnets.0").op


@settings(max_examples=5)
@given(walks)
def test_a_program_may_not_be_fed_other_images(walk):
    space = tiny.unet_space(tiny.UNET)
    spec = walked(space, walk)
    narrow = {**space.inputs, "sample": jax.ShapeDtypeStruct((2, 7, 7, 4), "float32")}
    with pytest.raises((TypeError, ValueError)):
        calls(lower(spec), narrow)
