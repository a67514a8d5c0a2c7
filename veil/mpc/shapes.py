"""Shapes of the results of bilinear operations, by arithmetic alone: nothing is allocated, nothing is computed.

The rules are those of torch's documentation of matmul, Conv1d/2d and ConvTranspose1d/2d; None means that shapes clash.
"""

from __future__ import annotations

Shape = tuple[int, ...]
Options = dict[str, int | tuple[int, ...]]


def broadcast(left: Shape, right: Shape) -> Shape | None:
    """The common shape of two tensors in an elementwise operation."""
    size = max(len(left), len(right))
    pairs = zip((1,) * (size - len(left)) + left, (1,) * (size - len(right)) + right, strict=True)
    extents = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            return None
        extents.append(other if one == 1 else one)
    return tuple(extents)


def matmul(left: Shape, right: Shape) -> Shape | None:
    """Shape of left @ right; vectors lose their dimension, batches are broadcast."""
    if not left or not right:
        return None
    rows, inner = (left[-2:-1], left[-1])
    columns = right[-1:] if len(right) > 1 else ()
    if inner != (right[-2] if len(right) > 1 else right[0]):
        return None
    batch = broadcast(left[:-2], right[:-2])
    return None if batch is None else batch + rows + columns


def convolution(operation: str, signal: Shape, kernel: Shape, options: Options) -> Shape | None:
    """Shape of a convolution of `signal` (batch, channels, extents...) with `kernel`; extents are one or two."""
    axes = 1 if operation.endswith("1d") else 2
    transposed = "transpose" in operation
    groups = options.get("groups", 1)
    if len(kernel) != axes + 2 or len(signal) not in (axes + 1, axes + 2) or not isinstance(groups, int) or groups < 1:
        return None
    stride, padding, dilation, extra = (
        _each(options, name, axes, default)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))
    )
    if stride is None or padding is None or dilation is None or extra is None or 0 in stride or 0 in dilation:
        return None
    if not transposed and "output_padding" in options:
        return None
    channels = signal[-axes - 1]
    if transposed:
        fits, out_channels = kernel[0] == channels and channels % groups == 0, kernel[1] * groups
    else:
        fits, out_channels = kernel[1] * groups == channels and kernel[0] % groups == 0, kernel[0]
    extents = []
    for axis in range(axes):
        reach = dilation[axis] * (kernel[2 + axis] - 1)
        extent = signal[axis - axes]
        if transposed:
            extents.append((extent - 1) * stride[axis] - 2 * padding[axis] + reach + extra[axis] + 1)
            fits = fits and extra[axis] < max(stride[axis], dilation[axis])
        else:
            extents.append((extent + 2 * padding[axis] - reach - 1) // stride[axis] + 1)
    if not fits or any(extent < 1 for extent in (*extents, *kernel)):
        return None
    return (*signal[: -axes - 1], out_channels, *extents)


def _each(options: Options, name: str, axes: int, default: int) -> Shape | None:
    """An option for each axis; a single number counts for all."""
    value = options.get(name, default)
    values = value if isinstance(value, tuple) else (value,)
    if len(values) == 1:
        return values * axes
    return values if len(values) == axes else None
