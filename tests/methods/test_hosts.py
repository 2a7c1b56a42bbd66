"""What the hosts are made of, on tensors alone: identities that each method must keep; 2 s."""

import pytest
import torch

from vala_research import InputError
from vala_research.methods.grid_shuffle import from_grids, shuffled, to_grids
from vala_research.methods.motion_field import global_motion, warp_noise
from vala_research.methods.token_flow import Shares, correspond, propagate
from vala_research.methods.token_merging import match, merge, merged_into
from vala_research.methods.trajectories import linked


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- TokenFlow ----------------------------------------------------------------------------------


def test_a_clip_corresponds_with_itself():
    x = drawn(4, 9, 5)
    found = correspond(x, x, Shares.between(4, range(4)))
    assert torch.equal(found.tokens[:, 0], torch.arange(9).expand(4, 9))
    assert torch.equal(found.carried(x), x)


def test_tokens_that_moved_are_found_again():
    """Each frame holds the key frame's tokens in another order, and lengths do not matter."""
    key, values = drawn(1, 9, 5), drawn(1, 9, 3, seed=1)
    orders = [torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    source = torch.stack([2.0 * key[0, order] for order in orders])
    spread = propagate(source, key, values, [0])
    assert torch.equal(spread, torch.stack([values[0, order] for order in orders]))


def test_frames_between_key_frames_mix_them_by_distance():
    same = drawn(1, 6, 4)
    source, keyframes = same.expand(5, -1, -1), same.expand(2, -1, -1)
    values = torch.stack([torch.zeros(6, 1), torch.ones(6, 1)])
    spread = propagate(source, keyframes, values, [0, 4])
    assert spread[:, 0, 0].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_released_shares_stay_near_a_half():
    shares = Shares.of_batches(24, 8)
    assert shares.keyframes[0] == (0, 0) and shares.shares[0] == (1, 0)
    assert shares.keyframes[8] == (1, 0) and shares.keyframes[23] == (2, 1)
    own = [first for first, _ in shares.shares[8:]]
    assert 0.5 < min(own) and max(own) <= 0.7311 and own[4] == pytest.approx(0.7311, abs=1e-4)


@pytest.mark.parametrize("positions", [[], [2, 1], [1, 1], [-1], [4]])
def test_key_frames_outside_the_clip_are_refused(positions):
    x = drawn(4, 3, 2)
    with pytest.raises(InputError, match="Key frames"):
        propagate(x, x[: len(positions)], x[: len(positions)], positions)


# --- token merging ------------------------------------------------------------------------------


def test_merging_nothing_keeps_every_token():
    x = drawn(3, 7, 4)
    merged, unmerge = merge(x, 0.0, torch.Generator().manual_seed(0))
    assert merged.shape == (21, 4) and torch.equal(unmerge(merged), x)


def test_equal_frames_merge_into_one():
    x = drawn(1, 7, 4).expand(3, -1, -1)
    for mode in ("replace", "mean"):
        merged, unmerge = merged_into(x, 1, 1.0, mode)
        assert merged.shape == (7, 4)
        torch.testing.assert_close(unmerge(merged), x)


def test_the_most_similar_tokens_are_merged():
    """Two of the four source tokens lie near a destination, in the second branch only."""
    destination, source = drawn(2, 3, 8), drawn(2, 4, 8, seed=1)
    source[1, 2], source[1, 0] = 3 * destination[1, 1], 2 * destination[1, 2]
    matching = match(source, destination, 0.5)
    pairs = dict(zip(matching.merged.tolist(), matching.into.tolist(), strict=True))
    assert pairs == {2: 1, 0: 2}
    back, kept = matching.parted(matching.joined(source, destination))
    assert torch.equal(kept, destination)
    assert torch.equal(back[:, [1, 3]], source[:, [1, 3]])
    assert torch.equal(back[:, 2], destination[:, 1])


def test_a_ratio_beyond_one_is_refused():
    with pytest.raises(InputError, match="ratio"):
        merge(drawn(2, 3, 4), 1.5)


# --- grids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_frames", [1, 4, 9, 10, 20])
def test_grids_hold_every_frame_and_come_apart_again(n_frames):
    x = drawn(n_frames, 2, 3, 5)
    order = shuffled(n_frames, 3, torch.Generator().manual_seed(1))
    grids = to_grids(x, 3, order)
    assert grids.shape == (-(-n_frames // 9), 2, 9, 15) and set(order) == set(range(n_frames))
    assert torch.equal(grids[0, :, :3, 5:10], x[order[1]])  # first row, second column
    assert torch.equal(from_grids(grids, 3, order), x)


def test_grids_of_one_frame_are_frames():
    x = drawn(3, 2, 4, 4)
    order = shuffled(3, 1)
    assert torch.equal(to_grids(x, 1, order), x[order])
    with pytest.raises(InputError, match="side"):
        shuffled(3, 0)


# --- motion field -------------------------------------------------------------------------------


def test_noise_without_motion_is_copied():
    noise = drawn(4, 6, 8)
    frames = warp_noise(noise, torch.zeros(3, 2, 6, 8, dtype=torch.float64))
    assert torch.equal(frames, noise.expand(3, -1, -1, -1))


def test_noise_moves_with_the_flow_and_stays_noise():
    noise = drawn(4, 6, 8)
    frames = warp_noise(noise, global_motion(3, (2.0, 1.0), 6, 8))
    assert torch.equal(frames[1, :, 1:, 2:], noise[:, :-1, :-2])
    assert torch.equal(frames[2, :, 2:, 4:], noise[:, :-2, :-4])
    assert set(frames[2].flatten().tolist()) <= set(noise.flatten().tolist())


# --- trajectories -------------------------------------------------------------------------------


def test_without_motion_every_site_is_one_trajectory():
    paths = linked(torch.zeros(3, 2, 8, 8), 4, 4)
    assert torch.equal(paths.sites, torch.arange(16)[:, None].expand(-1, 4))
    x = drawn(4, 16, 3)
    assert torch.equal(paths.scattered(paths.gathered(x)), x)


def test_trajectories_follow_the_flow():
    """Two pixels to the right are one site of a grid at half size; the right column leaves."""
    flow = torch.zeros(2, 2, 8, 8)
    flow[:, 0] = 2
    paths = linked(flow, 4, 4)
    assert paths.sites[0].tolist() == [0, 1, 2] and paths.sites[3].tolist() == [3, -1, -1]
    assert len(paths.sites) == 16 + 2 * 4  # the left column begins anew in each frame
    x = drawn(3, 16, 2)
    assert torch.equal(paths.scattered(paths.gathered(x)), x)


def test_where_two_trajectories_meet_one_goes_on():
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    first = {linked(flow, 1, 4, generator=torch.Generator().manual_seed(i)).of_sites[1, 1].item()
             for i in range(8)}  # fmt: skip
    assert first == {0, 1}


def test_flow_that_is_not_trusted_ends_a_trajectory():
    valid = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    valid[0, 0, 0, 2] = False
    paths = linked(torch.zeros(1, 2, 1, 4), 1, 4, valid)
    assert paths.of_sites.tolist() == [[0, 1, 2, 3], [0, 1, 4, 3]]
