"""Run pictures through a network in batches, so that no picture takes its neighbours down."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from .pictures import Picture

Item = TypeVar("Item")
Failed = Callable[[Item, Exception], None]
Network = Callable[[Tensor], Mapping[str, Tensor]]


def run_batches(
    items: Iterable[Item],
    read: Callable[[Item], Picture],
    network: Network,
    batch_size: int,
    failed: Failed[Item],
    refusals: tuple[type[Exception], ...] = (ValueError,),
) -> Iterator[tuple[Item, Picture, dict[str, Tensor]]]:
    """Group neighbours of equal size into batches and yield what the network makes of each picture, in order.

    Args:
        items: whatever `read` turns into pictures.
        read: one item's picture; ValueError, OSError and ImportError mean that it cannot be read.
        network: (B, 3, H, W) in [0, 1] -> {name: (B, ...)}.
        batch_size: the most pictures of one batch.
        failed: called with every item that is left out, and why.
        refusals: what the network raises where it does not accept a picture. A refused batch is run again picture by
            picture. Anything else is raised.

    Yields:
        (item, its picture, {name: (1, ...)}) of those that were accepted.

    Raises:
        ValueError: out of memory.
    """
    batch: list[tuple[Item, Picture]] = []
    for item in items:
        try:
            picture = read(item)
        except (ValueError, OSError, ImportError) as error:
            failed(item, error)
            continue
        if batch and batch[0][1].rgb.shape != picture.rgb.shape:
            yield from _run(batch, network, failed, refusals)
            batch = []
        batch.append((item, picture))
        del picture
        if len(batch) == batch_size:
            yield from _run(batch, network, failed, refusals)
            batch = []  # large pictures: the next one is read without this one in memory
    if batch:
        yield from _run(batch, network, failed, refusals)


def _run(
    batch: list[tuple[Item, Picture]], network: Network, failed: Failed[Item], refusals: tuple[type[Exception], ...]
) -> Iterator[tuple[Item, Picture, dict[str, Tensor]]]:
    rgb = batch[0][1].rgb if len(batch) == 1 else torch.cat([picture.rgb for _, picture in batch])  # (B, 3, H, W)
    try:
        made = network(rgb)
    except torch.OutOfMemoryError as error:
        raise ValueError("Out of memory: lower the batch size or the resolution, or use the CPU.") from error
    except refusals as error:
        if len(batch) == 1:
            failed(batch[0][0], error)
        else:  # one picture must not take its neighbours down
            for one in batch:
                yield from _run([one], network, failed, refusals)
        return
    del rgb
    for i, (item, picture) in enumerate(batch):
        yield item, picture, {name: values[i : i + 1] for name, values in made.items()}
