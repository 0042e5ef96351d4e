"""Rules of the reader: what each operation does to responses."""

from collections.abc import Iterable

from tconvjax._program import filters, products
from tconvjax._program import rearrangements as moves
from tconvjax._program.program import Value
from tconvjax._program.reader import Reader, Rule

RULES: dict[str, Rule] = {
    "reshape": moves.reshape,
    "squeeze": moves.reshape,
    "transpose": moves.transpose,
    "broadcast_in_dim": moves.broadcast,
    "rev": moves.rev,
    "slice": moves.slice_,
    "dynamic_slice": moves.dynamic_slice,
    "split": moves.split,
    "pad": moves.pad,
    "concatenate": moves.concatenate,
    "stack": moves.stack,
    "tile": moves.tile,
    "gather": moves.gather,
    "scatter": moves.scatter,
    "scatter-add": moves.scatter,
    "dynamic_update_slice": moves.update_slice,
    "add": products.add,
    "add_any": products.add,
    "sub": products.add,
    "mul": products.mul,
    "div": products.mul,
    "select_n": products.select,
    "dot_general": products.product,
    "conv_general_dilated": filters.convolution,
    "tconv_gather": filters.convolution,
    "tconv_paint": filters.convolution,
    "reduce_window_sum": filters.window_sum,
}


def reader_of(inputs: Iterable[Value], *, backward: bool = False) -> Reader:
    """Returns a reader of a program with the given inputs; with `backward`, of its gradients alone."""
    return Reader(inputs, RULES, backward=backward)
