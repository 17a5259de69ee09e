"""Running a network on pictures in batches, so that a picture that fails does not affect the rest of its batch."""

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
    """Group consecutive pictures of equal size into batches and yield the network's output for each picture, in order.

    Args:
        items: arguments of `read`.
        read: read the picture of one item; ValueError, OSError and ImportError mean that this failed.
        network: (B, 3, H, W) in [0, 1] -> {name: (B, ...)}.
        batch_size: maximum number of pictures in a batch.
        failed: called with every failed item and its error.
        refusals: errors by which the network rejects a picture. A rejected batch is run again picture by picture.
            Other errors are raised.

    Yields:
        (item, its picture, {name: (1, ...)}) for every picture that did not fail.

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
            batch = []  # free a large picture before the next one is read
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
        else:  # find the picture that fails
            for one in batch:
                yield from _run([one], network, failed, refusals)
        return
    del rgb
    for i, (item, picture) in enumerate(batch):
        yield item, picture, {name: values[i : i + 1] for name, values in made.items()}
