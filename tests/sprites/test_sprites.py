"""The sprite world: what is rendered is what is said, and every label is exact."""

import re
import time
from dataclasses import replace

import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.metrics import psnr, warp_error
from vala_research.sprites import captions
from vala_research.sprites.palette import COLOURS, HELD_OUT, PATTERNS, SHAPES, contrasts
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import Motion, Scene, World, random_scene, split_generator
from vala_research.sprites.shapes import shape_distance


def scenes(n, split="test", **kwargs):
    return [random_scene(split_generator(split, i), **kwargs) for i in range(n)]


def test_the_world_is_as_large_as_promised():
    assert len(SHAPES) >= 8 and len(COLOURS) >= 10 and len(PATTERNS) >= 4
    assert len(captions.WORDINGS[False]) >= 20 and len(captions.WORDINGS[True]) >= 10


@pytest.mark.parametrize("kwargs", [{}, {"second_object": True}])
@pytest.mark.parametrize("size", [48, 64])
def test_attributes_are_read_back_from_clean_frames(kwargs, size):
    for scene in scenes(40, **kwargs):
        for found in read_attributes(render(scene, 2, size).frames):
            assert found == scene.attributes


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_at_every_angle(shape):
    scene = Scene(shape=shape, motion=Motion(angle=(0.0, 6.0), size=(0.2, 0.27)))
    assert {found["shape"] for found in read_attributes(render(scene, 12).frames)} == {shape}


def test_an_empty_scene_has_no_object_and_its_edits_stay_empty():
    empty = Scene(shape=None, colour=None, pattern="checked")
    clip = render(empty, 2)
    assert clip.mask.sum() == 0 and clip.depth.sum() == 0
    assert read_attributes(clip.frames)[0] == empty.attributes
    assert empty.edited(shape="star", background="red").attributes["shape"] is None


def parsed(text: str) -> dict[str, str | None]:
    """The attributes that a caption names, of the first object of its first shot."""
    first = text.lower().split(", then ")[0]
    colours, patterns, shapes = ("|".join(words) for words in (COLOURS, PATTERNS, SHAPES))
    ground = re.search(
        rf"\b(?:(?P<p1>{patterns}) (?P<b1>{colours})|(?P<b2>{colours}) (?P<p2>{patterns}))"
        r" background\b", first
    )  # fmt: skip
    assert ground, text
    thing = re.search(rf"\b(?P<colour>{colours}) (?P<shape>{shapes})\b", first)
    return {
        "shape": thing and thing["shape"],
        "colour": thing and thing["colour"],
        "background": ground["b1"] or ground["b2"],
        "pattern": ground["p1"] or ground["p2"],
    }


def test_captions_parse_back_in_every_wording():
    for scene in scenes(40) + [Scene(shape=None, colour=None)]:
        sentences = set()
        for wording in range(len(captions.WORDINGS[scene.shape is None])):
            said = replace(scene, wording=wording).caption
            assert parsed(said) == scene.attributes
            assert " a a" not in said and " a o" not in said  # articles: "an orange ..."
            sentences.add(said)
            assert set(said.replace(",", "").split()) <= set(captions.vocabulary())
        assert len(sentences) == len(captions.WORDINGS[scene.shape is None])
    with pytest.raises(AssertionError, match="a dog"):
        parsed("a dog")


def test_an_edit_changes_what_it_names_and_nothing_else():
    source = Scene("circle", "red", "blue", "plain")
    before = render(source, 4)
    colour = render(source.edited(colour="green"), 4)
    assert torch.equal(before.mask, colour.mask) and torch.equal(before.flow, colour.flow)
    changed = (before.frames != colour.frames).any(1, keepdim=True)
    assert not (changed & (before.mask == 0)).any() and changed[before.mask == 1].all()
    shape = render(source.edited(shape="square"), 4)
    outside = (before.mask == 0) & (shape.mask == 0)
    assert torch.equal(before.frames * outside, shape.frames * outside)
    ground = render(source.edited(background="red", pattern="dotted"), 4)
    assert torch.equal(before.mask, ground.mask)
    assert psnr(before.frames, ground.frames) < 15  # a change that a metric would miss is no edit


def test_bad_scenes_are_refused():
    with pytest.raises(InputError, match="Unknown sprite shape 'dog'"):
        Scene(shape="dog")
    with pytest.raises(InputError, match="Cannot edit"):
        Scene().edited(size="big")
    with pytest.raises(InputError, match="both a shape and a colour"):
        Scene(shape=None)
    with pytest.raises(InputError, match="Cannot render 0 frames"):
        render(Scene(), 0)
    with pytest.raises(InputError, match="Unknown split"):
        split_generator("dev", 0)
    with pytest.raises(InputError, match="give f 3 h w"):
        read_attributes(torch.zeros(0, 3, 8, 8))


def test_true_flow_explains_the_motion():
    """Warping by the true flow leaves only the error of bilinear lookup at anti-aliased edges."""
    for scene in scenes(6) + scenes(4, second_object=True):
        clip = render(scene, 8, 96)
        right = warp_error(clip.frames, clip.flow, clip.flow_valid)
        wrong = warp_error(clip.frames, -clip.flow, clip.flow_valid)
        still = warp_error(clip.frames, torch.zeros_like(clip.flow), clip.flow_valid)
        assert right < 2e-3
        assert right < 0.5 * wrong and right < 0.6 * still


def test_flow_of_a_pure_translation_is_exact():
    clip = render(Scene(motion=Motion(start=(0.4, 0.4), end=(0.5, 0.35))), 2, 80)
    on_object = clip.mask[0, 0] == 1
    flow = clip.flow[0, :, on_object]
    expected = torch.tensor([8.0, -4.0])[:, None].expand_as(flow)
    torch.testing.assert_close(flow, expected, atol=1e-4, rtol=0)
    assert not clip.flow[0, :, clip.depth[0, 0] == 0].any()


def test_flow_is_invalid_where_the_target_is_hidden_outside_or_cut():
    moving = Scene(motion=Motion(start=(0.3, 0.5), end=(0.7, 0.5), pan=(0.5, 0.0)))
    clip = render(moving, 2)
    assert 0 < clip.flow_valid.mean() < 1
    assert clip.flow_valid[0, 0, 32, 40] == 0  # background that the object comes to cover
    assert not clip.flow_valid[0, 0, :, 40:][clip.depth[0, 0, :, 40:] == 0].any()  # leaves
    cut = render(random_scene(split_generator("test", 3), n_cuts=1), 6)
    assert cut.scene_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert not cut.flow_valid[2].any() and cut.flow_valid[1].any()


def test_depth_orders_the_layers():
    clip = render(scenes(1, second_object=True, world=World(empty=0.0))[0], 2)
    assert set(clip.depth.unique().tolist()) == {0.0, 1.0, 2.0}
    assert (clip.depth[clip.mask > 0.5] == 2).all()


def test_edges_are_anti_aliased_at_any_size():
    for size in (40, 64, 200):
        mask = render(Scene(motion=Motion(size=(0.25, 0.25))), 1, size).mask
        # Coverage integrates to the area of the disc: an aliased mask misses by more.
        assert mask.mean().item() == pytest.approx(torch.pi * 0.25**2, rel=3e-3)
        assert ((mask > 0) & (mask < 1)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_signed_and_do_not_grow_faster_than_space(shape):
    axis = torch.linspace(-1.6, 1.6, 161)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    distance = shape_distance(shape, x, y)
    assert distance.min() < -0.15 and distance[0, 0] > 0.3
    step = (distance[:, 1:] - distance[:, :-1]).abs().max() / (axis[1] - axis[0])
    assert step < 1.01  # 1-Lipschitz, or coverage would be wrong by the slope


def test_splits_never_meet_and_pairs_are_held_out():
    drawn = {s: {repr(x.motion) for x in scenes(60, s)} for s in ("train", "validation", "test")}
    assert not drawn["train"] & drawn["test"] and not drawn["train"] & drawn["validation"]
    assert not drawn["validation"] & drawn["test"]
    world = World(held_out=HELD_OUT)
    assert not {(s.shape, s.colour) for s in scenes(300, world=world)} & HELD_OUT
    assert {(s.shape, s.colour) for s in scenes(300)} & HELD_OUT  # else the line above is empty
    pair = ("star", "purple")
    assert {(s.shape, s.colour) for s in scenes(5, pair=pair)} == {pair}


def test_everything_comes_from_the_seed():
    first, again = (random_scene(split_generator("test", 7), n_cuts=2) for _ in range(2))
    assert first == again != random_scene(split_generator("test", 8), n_cuts=2)
    assert torch.equal(render(first, 6).frames, render(again, 6).frames)
    assert all(contrasts(s.colour, s.background) for s in scenes(60) if s.colour)


def test_rendering_is_fast():
    """>= 500 frames a second at 64 px on one core; processor time, so a busy machine passes too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        todo = scenes(30, "train")
        render(todo[0])
        start = time.process_time()
        n = sum(len(render(scene).frames) for scene in todo)
        assert n / (time.process_time() - start) >= 500
    finally:
        torch.set_num_threads(threads)
