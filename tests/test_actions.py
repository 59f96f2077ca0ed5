"""Edits of stages: published networks follow from each other, and weights go along."""

import dataclasses

import numpy as np
import pytest

from nas.diffusion import unet
from nas.testing.spaces import calibration
from search_spaces import presets
from search_spaces.actions import (
    Choose,
    Copy,
    InsertPair,
    Move,
    Remove,
    RemovePair,
    RemoveStage,
    Width,
    moved_inwards,
)
from search_spaces.blocks import ResNet, Swish, Transformer
from search_spaces.layers import ReluByLength
from search_spaces.model import Weights
from search_spaces.program import network
from search_spaces.space import Action
from search_spaces.surgery import Calibration, Carried
from search_spaces.unet import Place, UNetSpec, lower
from search_spaces.unet_space import UNetSpace
from tests import drawn, tiny
from tests.drawn import compiled


def applied(spec: UNetSpec, *actions: Action[UNetSpec]) -> UNetSpec:
    for action in actions:
        spec = action.apply(spec)
    return spec


BK_BASE = [RemovePair(stage, 1, 1) for stage in range(4)]
BK_SMALL = [Remove(block.name) for block in presets.bk_base().spec.middle.blocks]
KOALA_1B = [
    *(RemovePair(stage, 1, 1) for stage in range(3)),
    *(
        Choose(block.name, "depth", 6)
        for block in presets.sdxl().spec.blocks
        if isinstance(block.op, Transformer)
        and block.op.depth == 10
        and not block.name.startswith(("down_blocks.2.attentions.1", "up_blocks.0.attentions.1"))
    ),
]


UP = "up_blocks.1.attentions.2"
SNAPFUSION = [
    *(Remove(f"down_blocks.0.attentions.{number}") for number in range(2)),
    *(Remove(f"up_blocks.3.attentions.{number}") for number in range(3)),
    Remove("mid_block.resnets.1"),
    *(RemovePair(stage, 1, 1) for stage in (2, 3)),
    Copy("down_blocks.2.attentions.0", "down_blocks.2.attentions.0+1"),
    *(Copy(UP, f"{UP}+{number}") for number in range(1, 5)),
]

LAST = "up_blocks.2.attentions.2"
DECK = [
    *SNAPFUSION[:-3],  # One copy in Up-1 instead of four.
    *(Copy(LAST, f"{LAST}+{number}") for number in range(1, 4)),
]
KOALA_700M = [
    *(Remove(block.name) for block in presets.koala_1b().spec.middle.blocks),
    *(
        Choose(block.name, "depth", 5)
        for block in presets.koala_1b().spec.blocks
        if isinstance(block.op, Transformer)
        and block.op.depth == 6
        and not block.name.startswith("mid_block")
    ),
]


@pytest.mark.parametrize(
    ("seed", "edits", "result"),
    [
        pytest.param(presets.sd15, SNAPFUSION, presets.snapfusion_v3, id="SnapFusion"),
        pytest.param(presets.sd15, BK_BASE, presets.bk_base, id="BK-SDM-Base"),
        pytest.param(presets.bk_base, BK_SMALL, presets.bk_small, id="BK-SDM-Small"),
        pytest.param(presets.bk_small, [RemoveStage()], presets.bk_tiny, id="BK-SDM-Tiny"),
        pytest.param(presets.sdxl, KOALA_1B, presets.koala_1b, id="KOALA-1B"),
        pytest.param(presets.koala_1b, KOALA_700M, presets.koala_700m, id="KOALA-700M"),
        pytest.param(presets.sd15, DECK, presets.snapfusion_deck, id="SnapFusion's talk"),
    ],
)
def test_a_published_network_follows_from_another_by_legal_edits(seed, edits, result):
    spec, inputs = seed()
    space = UNetSpace(spec, inputs)
    for edit in edits:
        assert space.illegal(spec, edit) is None
        spec = edit.apply(spec)
    assert spec == result().spec


SPACE = tiny.unet_space(tiny.NARROW_SD15)
SEED = SPACE.seed
WEIGHTS = tiny.seed_weights(SPACE)


def carried(action: Action[UNetSpec], spec: UNetSpec = SEED, weights: Weights = WEIGHTS) -> Carried:
    return action.carry(spec, weights, Calibration(SPACE.inputs))


def test_removing_a_stage_keeps_the_rest_to_the_bit():
    found = carried(RemoveStage())
    kept = tiny.shapes(SPACE, RemoveStage().apply(SEED))
    assert found.weights.keys() == kept.keys() and found.fresh == ()
    assert all(found.weights[name] is WEIGHTS[name] for name in kept)
    assert set(found.lost) == WEIGHTS.keys() - kept.keys()


def test_a_stage_that_is_restored_is_listed_as_drawn():
    smaller = RemoveStage().apply(SEED)
    back = RemoveStage().inverse(SEED)
    found = carried(back, smaller, carried(RemoveStage()).weights)
    assert set(found.fresh) == WEIGHTS.keys() - tiny.shapes(SPACE, smaller).keys()
    assert not np.asarray(found.weights["down_blocks.3.resnets.0.conv2.kernel"]).any()


def test_a_stage_of_another_width_cannot_be_removed():
    space = tiny.unet_space(tiny.UNET)
    reason = space.illegal(space.seed, RemoveStage())
    assert reason is not None and "its weights do not fit" in reason


def test_a_spec_of_one_stage_has_none_to_remove():
    spec = SEED
    for _ in range(3):
        spec = RemoveStage().apply(spec)
    with pytest.raises(ValueError, match="one stage"):
        RemoveStage().apply(spec)


def test_a_stage_whose_skips_do_not_balance_cannot_be_removed():
    stage = SEED.up[0]
    more = dataclasses.replace(stage, layers=(*stage.layers, stage.layers[0]))
    spec = dataclasses.replace(SEED, up=(more, *SEED.up[1:]))
    with pytest.raises(ValueError, match="pushes 3 skips and pops 4"):
        RemoveStage().apply(spec)


def test_removing_a_pair_keeps_the_rest_to_the_bit():
    action = RemovePair(0, 1, 1)
    found = carried(action)
    assert all(found.weights[name] is WEIGHTS[name] for name in found.weights)
    gone = {name.rsplit(".", 1)[0].split(".conv")[0] for name in found.lost}
    assert {name[:26] for name in gone} >= {"down_blocks.0.resnets.1.no"[:26]}
    assert all(name.startswith(("down_blocks.0.", "up_blocks.3.")) for name in found.lost)


def test_a_pair_at_different_widths_is_illegal():
    reason = SPACE.illegal(SEED, RemovePair(1, 0, 0))
    assert reason is not None and "its weights do not fit" in reason


def test_a_pair_is_put_back_where_it_was():
    action = RemovePair(1, 1, 1)
    back = action.inverse(SEED)
    assert isinstance(back, InsertPair)
    assert repr(back.apply(action.apply(SEED))) == repr(SEED)


def test_a_transformer_that_moves_between_equal_widths_takes_its_weights():
    action = moved_inwards(SEED, "down_blocks.2.attentions.1")
    assert action.place == Place(3, 0, 1)
    found = carried(action)
    assert found.weights.keys() == WEIGHTS.keys() and found[1:] == ((), ())
    assert all(found.weights[name] is WEIGHTS[name] for name in WEIGHTS)


def test_a_transformer_that_moves_to_another_width_starts_as_a_no_op():
    name = "down_blocks.0.attentions.1"
    action = moved_inwards(SEED, name)
    assert action.op == SEED.block("down_blocks.1.attentions.1").op
    found = carried(action)
    assert found.fresh == () and all(n.startswith(f"{name}.") for n in found.lost) and found.lost
    values = tiny.values(SPACE.inputs, seed=1)
    gone = lower(Remove(name).apply(SEED))
    without = carried(Remove(name)).weights
    moved = compiled(network(lower(action.apply(SEED)), SPACE.inputs))(found.weights, values)
    removed = compiled(network(gone, SPACE.inputs))(without, values)
    assert drawn.relative_error(moved, removed) < 1e-6


def test_only_transformers_outside_the_middle_move_towards_it():
    for name in ("mid_block.attentions.0", "down_blocks.0.resnets.0"):
        with pytest.raises(ValueError, match="no transformer outside the middle"):
            moved_inwards(SEED, name)


def test_a_block_that_reads_a_skip_does_not_move():
    block = SEED.block("up_blocks.0.resnets.0")
    with pytest.raises(ValueError, match="reads a skip"):
        Move(block.name, Place(0, 0, 0), block.op).apply(SEED)


@pytest.mark.parametrize("stage", range(len(SEED.stages)))
def test_a_narrower_stage_slices_all_that_is_coupled_alike(stage):
    """No two weights are equal, so a bias tells which channels were kept; every weight that is
    left is then one of the old ones."""
    width = {4: 2, 8: 4, 16: 8}[
        max(b.op.width for b in SEED.stages[stage].blocks if isinstance(b.op, ResNet))
    ]
    action = Width(stage, width)
    found = carried(action)
    wanted = tiny.shapes(SPACE, action.apply(SEED))
    assert {n: w.shape for n, w in found.weights.items()} == {n: s.shape for n, s in wanted.items()}
    name = SEED.stages[stage].blocks[0].name
    bias = np.asarray(found.weights[f"{name}.conv2.bias"])
    old = np.asarray(WEIGHTS[f"{name}.conv2.bias"])
    kept = [int(np.flatnonzero(old == value)[0]) for value in bias]
    assert kept == sorted(kept) and len(kept) == width
    # As many of each of the two groups of the normalisation.
    assert sum(channel < 2 * width / 2 for channel in kept) == width // 2
    for each, weight in found.weights.items():
        before = np.asarray(WEIGHTS[each]) if each in WEIGHTS else None
        if before is None or before.shape == weight.shape:
            continue
        values = set(np.asarray(before).ravel().tolist())
        assert set(np.asarray(weight).ravel().tolist()) <= values
        if weight.ndim == 4 and before.shape[-1] == 2 * width and weight.shape[-1] == width:
            out = before[..., kept]
            assert set(np.asarray(weight).ravel().tolist()) <= set(out.ravel().tolist())


def test_what_reads_a_narrower_stage_reads_the_channels_that_were_kept():
    found = carried(Width(1, 4)).weights
    old = np.asarray(WEIGHTS["down_blocks.1.resnets.1.conv2.bias"]).tolist()
    bias = np.asarray(found["down_blocks.1.resnets.1.conv2.bias"]).tolist()
    kept = np.array([old.index(value) for value in bias])
    skip = np.array([*range(16), *(16 + kept)])  # Of x, then of the skip.
    ffn = (kept + 8 * np.arange(8)[:, None]).ravel()  # Eight widths, one after another.
    for name, places in {
        "down_blocks.1.resnets.1.conv1.kernel": (range(3), range(3), kept, kept),
        "down_blocks.1.resnets.1.norm1.scale": (kept,),
        "down_blocks.1.resnets.1.time_emb_proj.kernel": (range(16), kept),
        "down_blocks.1.attentions.0.proj_in.kernel": (range(1), range(1), kept, kept),
        "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.kernel": (kept, ffn),
        "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.kernel": (ffn[: 4 * 4], kept),
        "down_blocks.1.downsamplers.0.conv.kernel": (range(3), range(3), kept, kept),
        "down_blocks.2.resnets.0.conv1.kernel": (range(3), range(3), kept, range(16)),
        "up_blocks.2.resnets.0.conv1.kernel": (range(3), range(3), skip, range(8)),
        "up_blocks.2.resnets.0.norm1.bias": (skip,),
    }.items():
        wanted = np.asarray(WEIGHTS[name])[np.ix_(*map(list, places))]
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def test_a_transformer_that_computes_otherwise_after_a_move_does_not_keep_its_weights_in_silence():
    name = "down_blocks.2.attentions.1"
    op = Choose(name, "gate", Swish()).chosen(SEED.block(name).op)
    found = carried(Move(name, Place(3, 0, 1), op))
    assert found.fresh and found.lost
    kept = moved_inwards(SEED, name)
    assert kept.op == SEED.block(name).op


def test_a_name_that_others_begin_with_is_not_free():
    for name in ("mid_block.attentions", "conv_in", "mid_block.attentions.0.norm"):
        with pytest.raises(ValueError, match="give the new one another name"):
            Copy("mid_block.attentions.0", name).apply(SEED)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (Choose("mid_block.attentions.0", "ffn", 0), "2, 4, 6 and so on"),
        (Choose("mid_block.attentions.0", "ffn", 5), "2, 4, 6 and so on"),
        (Choose("mid_block.attentions.0", "heads", 0), "one or more is possible"),
        (Choose("mid_block.attentions.0", "depth", -1), "one or more is possible"),
        (Width(0, 0), "one channel or more"),
    ],
)
def test_values_out_of_range_are_illegal_with_what_is_possible(action, reason):
    found = SPACE.illegal(SEED, action)
    assert found is not None and reason in found


def test_a_choice_that_changes_nothing_that_is_computed_is_illegal():
    name = "mid_block.attentions.0"
    spec = applied(
        SEED, Choose(name, "self_attention", False), Choose(name, "cross_attention", False)
    )
    for field, value in (("mixing", ReluByLength()), ("shared", True), ("heads", 1)):
        reason = SPACE.illegal(spec, Choose(name, field, value))
        assert reason is not None and "changes nothing that" in reason


def test_keys_and_values_of_more_channels_than_there_are_to_read_are_shared():
    """The rank of a head is then less than its size."""
    spec = applied(SEED, Width(4, 8), Width(4, 4))
    weights = tiny_weights(spec)
    action = Choose("mid_block.attentions.0", "shared", True)
    found = action.carry(spec, weights, calibration(SPACE))
    wanted = tiny.shapes(SPACE, action.apply(spec))
    assert {n: w.shape for n, w in found.weights.items()} == {n: s.shape for n, s in wanted.items()}


def tiny_weights(spec: UNetSpec) -> Weights:
    return drawn.weights(tiny.shapes(SPACE, spec), seed=5)


def test_a_shortcut_that_a_width_makes_needed_passes_on_the_channels_both_have():
    action = Width(4, 8)  # The middle, between stages of sixteen.
    found = carried(action)
    kernel = np.asarray(found.weights["mid_block.resnets.0.conv_shortcut.kernel"])[0, 0]
    assert kernel.shape == (16, 8) and set(np.unique(kernel)) == {0.0, 1.0}
    assert (kernel.sum(0) == 1).all()
    bias = np.asarray(WEIGHTS["mid_block.resnets.0.conv2.bias"])
    assert (bias @ kernel == np.asarray(found.weights["mid_block.resnets.0.conv2.bias"])).all()


def test_a_shortcut_that_a_width_makes_needless_is_listed_as_lost():
    found = carried(Width(2, 8))
    assert "down_blocks.2.resnets.0.conv_shortcut.kernel" in found.lost


def test_a_wider_stage_lists_what_was_drawn_and_reads_it_silently():
    found = carried(Width(1, 16))
    assert "down_blocks.1.resnets.1.conv1.kernel" in found.fresh
    kernel = np.asarray(found.weights["down_blocks.1.resnets.1.conv1.kernel"])
    new = [channel for channel in range(16) if channel % 8 >= 4]  # Each of two groups is filled up.
    assert not kernel[:, :, new, :][..., [c for c in range(16) if c % 8 < 4]].any()
    assert kernel.any()


def test_a_stage_without_a_resnet_has_no_width():
    spec = applied(SEED, *(Remove(b.name) for b in SEED.middle.blocks))
    with pytest.raises(ValueError, match="mid_block has no ResNet"):
        Width(4, 8).apply(spec)


def test_a_width_that_is_not_of_whole_groups_is_illegal():
    reason = SPACE.illegal(SEED, Width(0, 3))
    assert reason is not None and "3 channels do not divide into 2 groups" in reason


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Choose("mid_block.attentions.0", "width", 8), "no choice 'width'; it has"),
        (
            Choose("mid_block.attentions.0", "ffn", "six"),
            "ffn .* cannot be 'six'; it may be 8, 6, 4",
        ),
        (Choose("mid_block.attentions.0", "gate", 3), "gate .* cannot be 3; it may be GELU"),
        (Choose("mid_block.resnets.0", "gate", Swish()), "ResNet, which has no choice 'gate'"),
        (RemovePair(9, 0, 0), "no stage 9"),
        (RemovePair(0, 7, 0), "down_blocks.0 has 2 layers, and no layer 7"),
        (Width(40, 8), "no stage 40"),
    ],
)
def test_what_cannot_be_done_says_what_can(action, message):
    with pytest.raises(ValueError, match=message):
        action.apply(SEED)


def test_a_choice_without_calibration_samples_says_that_it_needs_them():
    action = Choose("mid_block.attentions.0", "ffn", 4)
    assert action.calibrated and not Remove("mid_block.attentions.0").calibrated
    with pytest.raises(ValueError, match="calibration samples, and none were given"):
        carried(action)


def test_an_edited_spec_of_sdxl_is_still_of_its_family():
    spec = unet.from_config(tiny.NARROW_SDXL)
    assert Choose("mid_block.attentions.0", "depth", 2).apply(spec).added == spec.added
