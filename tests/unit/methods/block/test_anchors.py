"""Anchors follow from seed, epoch and row alone, and a draft bears loss up to the first token that does not."""

import torch

from spec.attention.documents import Documents
from spec.methods.block.anchors import Blocks, Chunk, draw

DRAFTS = 3


def drawn(lengths, masks, rows=None, *, most=512, seed=0, epoch: int | None = 0, width=None) -> Blocks:
    """`masks`: a string of 0 and 1 for each document."""
    documents = Documents.from_lengths(lengths, width or max(map(sum, lengths)))
    loss_mask = torch.zeros(documents.position_ids.shape, dtype=torch.bool)
    for (row, start, end), mask in zip(documents.spans, masks, strict=True):
        loss_mask[row, start:end] = torch.tensor([letter == "1" for letter in mask])
    rows = range(len(masks)) if rows is None else rows
    return draw(documents, loss_mask, rows, drafts=DRAFTS, most=most, seed=seed, epoch=epoch)


def test_an_anchor_and_its_next_token_bear_loss_and_labels_end_at_a_gap_and_at_the_document():
    blocks = drawn([[10, 6]], ["0111100110", "110111"])
    # Not the second document's first token, which has no context; not a turn's last one, which has no next.
    assert blocks.places == (1, 2, 3, 7, 13, 14)
    assert blocks.labels == (3, 2, 1, 1, 2, 1)
    assert blocks.firsts == (0, 0, 0, 0, 10, 10)
    assert blocks.count.tolist() == [6, 3, 1]
    assert blocks.draft.tolist() == [0, 1, 2, 0, 1, 0, 0, 0, 1, 0]


def test_the_places_that_the_target_chooses_at_are_each_named_once():
    blocks = drawn([[10, 6]], ["0111100110", "110111"])
    assert blocks.chosen.tolist() == [1, 2, 3, 7, 13, 14]
    wanted = blocks.anchors[blocks.block] + blocks.draft
    assert torch.equal(blocks.chosen[blocks.slot], wanted)


def test_a_rows_anchors_hang_on_seed_epoch_and_row_alone():
    first, second = "0" + "1" * 39, "0" * 5 + "1" * 25
    packed = drawn([[40, 30]], [first, second], (7, 3), most=6)
    others = drawn([[30], [40]], [second, first], (3, 7), most=6, width=55)  # another order, padded
    assert len(packed.places) == 12
    assert [at - 40 for at in packed.places[6:]] == list(others.places[:6])
    assert list(packed.places[:6]) == [at - 30 for at in others.places[6:]]
    for change in ({"seed": 1}, {"epoch": 1}, {"rows": (8, 4)}, {"epoch": None}):
        again = drawn(**({"lengths": [[40, 30]], "masks": [first, second], "rows": (7, 3), "most": 6} | change))
        assert again.places[:6] != packed.places[:6] and again.places[6:] != packed.places[6:], change


def test_every_anchor_is_drawn_sooner_or_later_and_at_most_so_many_of_each_document():
    seen = set()
    for epoch in range(40):
        blocks = drawn([[20, 20]], ["0" + "1" * 19] * 2, most=4, epoch=epoch)
        assert len(blocks.places) == 8 and len(set(blocks.places)) == 8
        seen |= set(blocks.places)
    assert seen == {*range(1, 19), *range(21, 39)}


def test_chunks_are_whole_blocks_and_the_places_they_need():
    blocks = drawn([[10, 6]], ["0111100110", "110111"])  # labels 3, 2, 1, 1, 2, 1
    assert blocks.chunks(5) == [Chunk(0, 5, 0, 3), Chunk(5, 10, 2, 6)]
    assert blocks.chunks(1) == [
        *(Chunk(0, 3, 0, 3), Chunk(3, 5, 1, 3), Chunk(5, 6, 2, 3)),
        *(Chunk(6, 7, 3, 4), Chunk(7, 9, 4, 6), Chunk(9, 10, 5, 6)),
    ]
    assert drawn([[4]], ["0000"]).chunks(5) == []
